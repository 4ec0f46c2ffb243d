"""Files that are either whole or absent, and names made from contents.

A file gets its name when it is complete: it is written under a temporary name beside its place, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


TEMPORARY_SUFFIX = ".tmp"

# Written into the folder of a run while it trains, and read by who looks at the run.
EVALUATIONS_NAME = "evaluations.jsonl"


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the place of `path` when the block ends, and is removed if the block
    fails.

    Example::

        with whole_file(folder / "pooler.safetensors") as temporary:
            save_file(tensors, temporary)
    """
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object, indent: int | None = 2) -> None:
    """Write a whole JSON file, ended by a new line."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def digest(*parts: str | bytes, size: int = 8) -> bytes:
    """`size` bytes that stand for the parts, one after another (BLAKE2b). Texts may hold lone surrogates."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass"))
    return state.digest()
