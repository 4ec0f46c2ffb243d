"""Files and folders that are either whole or absent, and names made from contents.

A file gets its name when it is complete: it is written under a temporary name beside its place, brought to the disk
(a machine that loses its power may have kept the new name and not the content), then renamed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
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
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: str | Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def put_in_place(folder: str | Path, target: str | Path) -> None:
    """Let a finished folder take the place of `target`, whether or not that exists: at every moment `target` is the
    whole old one or the whole new one. Both lie on one file system."""
    folder, target = Path(folder), Path(target)
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(parent)
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        replaced = folder if _exchange(folder, target) else _rename_both(folder, target)
        shutil.rmtree(replaced)
    sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, which Linux can on its own file systems; False where it cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(exchange)) == 0


def _rename_both(folder: Path, target: Path) -> Path:
    """Where names cannot be swapped there is a moment with neither; the old folder then still lies beside."""
    replaced = folder.with_name(f"{folder.name}-replaced")
    os.rename(target, replaced)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(replaced, target)
        raise
    return replaced


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
