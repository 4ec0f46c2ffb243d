"""Where prepared data lie: folders in the cache of `datasets`, named by what they were made of, whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ... import __version__
from ...files import digest, put_in_place
from ..files import HubOptions
from .entries import Entry, TextSource, load_hub_rows


FOLDER = "llamafactory_embed"
# Data of fewer bytes are read anew by every process: it takes less than a second.
SMALLEST_KEPT = 16 * 2**20
LAYOUT = 2  # a number for each way to lay the tables out
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_root(hub: HubOptions) -> Path:
    """Where `datasets` keeps what it has prepared."""
    import datasets

    return Path(hub.cache_dir or datasets.config.HF_DATASETS_CACHE, FOLDER)


def folder_of_rows(entry: Entry, hub: HubOptions) -> Path | None:
    """The folder for the rows of a data set; None where they are not kept: they are few, or nothing tells whether they
    have changed.

    Its name stands for the files' paths, sizes and times, and for all that decides how they are read.
    """
    texts = [source for source in (entry.corpus, entry.queries) if source is not None]
    states = [_state(entry, hub), *(_state(source, hub) for source in texts)]
    if None in states or sum(size for state in states if state for size, _ in state) < SMALLEST_KEPT:
        return None
    if entry.teacher_vectors is not None:
        states.append(_state_of_files(entry.teacher_vectors))
    settings = dataclasses.asdict(entry)
    for unimportant in ("name", "task", "symmetric", "own_passages_only", "num_samples", "objective", "first_rows"):
        del settings[unimportant]
    identity = json.dumps([LAYOUT, __version__, settings, states], sort_keys=True)
    return cache_root(hub) / digest(identity, size=16).hex()


def _state(source: Entry | TextSource, hub: HubOptions) -> list[tuple[int, str]] | None:
    """Bytes, and what tells one content from another, of each file of a source."""
    if not source.on_hub:
        return _state_of_files(source.location)
    loaded = load_hub_rows(source, hub)
    splits = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    if not all(hasattr(each, "_fingerprint") for each in splits):
        return None
    return [(each.data.nbytes, each._fingerprint) for each in splits]


def _state_of_files(location: str) -> list[tuple[int, str]]:
    path = Path(os.path.abspath(location))
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    found = [(file, file.stat()) for file in files if file.exists()]  # who reads it tells what is not there
    return [(stat.st_size, f"{file} {stat.st_mtime_ns}") for file, stat in found]


@contextlib.contextmanager
def write_folder(target: Path, is_good: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """Give a temporary folder to write to; it gets its name when the block ends, and is removed if the block fails or
    what was written is not good."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise _no_room(target, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)  # others who share the cache read it, too
        if is_good():
            put_in_place(temporary, target)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise _no_room(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _no_room(target: Path, error: OSError) -> ValueError:
    return ValueError(
        f"The prepared data cannot be written to {target.parent} ({error}): make room there, or name another folder "
        "with `cache_dir`."
    )
