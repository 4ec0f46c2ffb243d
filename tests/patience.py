"""How long a test waits."""

import time
from collections.abc import Callable


# Seconds for any process, thread or page. No test is about speed: only what hangs takes as long, on any machine.
PATIENCE = 1800.0


def comes_true(condition: Callable[[], object]) -> bool:
    """Whether it is so, or becomes so while we wait."""
    deadline = time.monotonic() + PATIENCE
    while not (is_so := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so
