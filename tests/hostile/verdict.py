"""What every reader owes whoever sends it nonsense: a result, or one of our sentences; in the end, always an end."""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, settings

import llamafactory_embed
from tests.patience import PATIENCE


PACKAGE = Path(llamafactory_embed.__file__).parent
# Set by `python -m tests.hostile`: how many cases of each property, drawn anew each time.
LONG_RUN = os.environ.get("HOSTILE_EXAMPLES")
CASES: Counter[str] = Counter()


def hostile(examples: int) -> settings:
    """So many cases, the same ones at every run of the tests; in a long run as many as it asks for, always others."""
    return settings(
        max_examples=int(LONG_RUN or examples),
        derandomize=LONG_RUN is None,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # a recipe takes seconds to check: cases are small as they are
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def a_result_or_a_sentence(reader: str, *also_from: str) -> Iterator[None]:
    """Fails for an error that is none of our sentences, and for a reader that hangs. `also_from` are packages whose
    sentences count like ours, such as the host's."""
    CASES[reader] += 1

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{reader} hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(int(PATIENCE))
    try:
        yield
    except ValueError as error:
        if not is_sentence(error, also_from):
            raise AssertionError(f"{reader}: {type(error).__name__} is none of our sentences: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_sentence(error: ValueError, also_from: tuple[str, ...] = ()) -> bool:
    """Whether it was raised on purpose: by a `raise` of this package, or by one of the others."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    is_raised = linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise")
    is_ours = Path(file).is_relative_to(PACKAGE) or any(f"/{name}/" in file for name in also_from)
    return is_raised and is_ours and not isinstance(error, UnicodeError)
