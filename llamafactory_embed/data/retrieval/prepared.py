"""Where prepared data lie: folders in the cache of `datasets`, named by what they were made of, whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ... import __version__
from ...files import digest, put_in_place
from ..registry import HubOptions
from .entries import Entry, TextSource, load_hub_rows


FOLDER = "llamafactory_embed"
# Data of fewer bytes are read anew by every process: it takes less than a second.
SMALLEST_KEPT = 16 * 2**20
LAYOUT = 2  # a number for each way to lay the tables out
UNFINISHED = ".tmp"  # folders that are being written
LONGEST_PAUSE = 24 * 60 * 60.0  # seconds between two writes of a preparation
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
        _remove_unfinished(target)
        writer = f"{target.name}.{platform.node()}.{os.getpid()}."
        temporary = Path(tempfile.mkdtemp(prefix=writer, suffix=UNFINISHED, dir=target.parent))
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


def _remove_unfinished(target: Path) -> None:
    """What preparations of the same data left that were killed: their process is gone, or they have written nothing
    for a long time, on a machine that cannot be asked."""
    for left in target.parent.glob(f"{glob.escape(target.name)}.*{UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):  # it has just been finished
            last_written = max(each.stat().st_mtime for each in (left, *left.iterdir()))
            if time.time() - last_written > LONGEST_PAUSE or _is_of_a_dead_process(left.name[len(target.name) + 1 :]):
                shutil.rmtree(left, ignore_errors=True)


def _is_of_a_dead_process(name: str) -> bool:
    """Whether the process that named a folder (`MACHINE.PROCESS.ANYTHING.tmp`) ran here, and runs no more."""
    machine, _, process = name.removesuffix(UNFINISHED).rpartition(".")[0].rpartition(".")
    if machine != platform.node() or not process.isdecimal() or os.name == "nt":
        return False  # Windows has no question to a process that does it no harm
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs for somebody else
        return False
    return False


def _no_room(target: Path, error: OSError) -> ValueError:
    return ValueError(
        f"The prepared data cannot be written to {target.parent} ({error}): make room there, or name another folder "
        "with `cache_dir`."
    )
