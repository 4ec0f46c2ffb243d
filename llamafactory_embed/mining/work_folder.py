"""The folder in which mining leaves what it has done, so that it can be interrupted and continued.

Every file there has a check sum beside it. One that has changed since it was written is made again, with all that may
have been made from it, and is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import TEMPORARY_SUFFIX, whole_file, write_text
from ..foreign import is_plain_name


STEPS = ("read", "embed", "search", "select")
# The files of a job, the last of which is there when it is done. A step without jobs is done as a whole.
FILES_OF_JOBS = {"embed": (".npy",), "search": (".npy",), "select": (".json", ".jsonl")}
SETTINGS = "settings.json"
DONE = "done"
SUM_SUFFIX = ".sum"

logger = logging.getLogger(__name__)


class WorkFolder:
    """A folder for each step. A step is done again when its settings, or those of a step before it, change."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def folder(self, step: str) -> Path:
        """Where a step leaves its files."""
        return self.path / step

    def prepare(self, settings: dict[str, Any]) -> None:
        """Keep what was done with these settings and is as it was written; remove everything else."""
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / STEPS[0]).is_dir():
            raise ValueError(f"`work_folder`: {self.path} holds other files; name an empty or new folder.")
        so_far: dict[str, Any] = {}  # a step's file names the settings of those before, too
        is_kept = True
        for step in STEPS:
            so_far |= {step: settings[step]}
            written = json.dumps(so_far, indent=1, ensure_ascii=False, sort_keys=True)
            is_kept = is_kept and self._was_begun_with(step, written)
            damaged = self._find_damaged(step) if is_kept else []
            if damaged:
                logger.warning(_describe(step, damaged))
            if not is_kept or (damaged and step not in FILES_OF_JOBS):
                shutil.rmtree(self.folder(step), ignore_errors=True)
                self.folder(step).mkdir(parents=True)
                write_text(self.folder(step) / SETTINGS, written)
            else:
                for file in damaged:
                    file.unlink(missing_ok=True)
            is_kept = is_kept and not damaged

    def is_finished(self, step: str) -> bool:
        """Whether a step without jobs was done."""
        return (self.folder(step) / DONE).is_file()

    def finish(self, step: str) -> None:
        """All files of a step without jobs are there."""
        write_text(self.folder(step) / DONE, "\n".join(_list_files(self.folder(step))))

    def remove(self) -> None:
        """Remove the steps' folders, the first of them, by which `prepare` knows this folder, at last; and the folder
        itself if nothing else is in it."""
        for step in reversed(STEPS):
            shutil.rmtree(self.folder(step), ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _was_begun_with(self, step: str, settings: str) -> bool:
        path = self.folder(step) / SETTINGS
        if not path.is_file():
            return False
        is_same = path.read_bytes() == settings.encode()
        if not is_same:
            logger.warning("%s: begun with other settings than these; `%s` and what follows begin anew.", path, step)
        return is_same

    def _find_damaged(self, step: str) -> list[Path]:
        """Files of finished work that are gone, or not what was written; with one of a job, all of that job."""
        folder = self.folder(step)
        if step not in FILES_OF_JOBS:
            return _find_changed(folder) if self.is_finished(step) else []
        *others, last = FILES_OF_JOBS[step]
        damaged: list[Path] = []
        done = sorted(folder.glob(f"*{last}"))
        for file in tqdm(done, desc=f"Checking what `{step}` has done", unit=" files", disable=not done):
            files = [file, *map(file.with_suffix, others)]
            if not all(map(is_as_written, files)):
                damaged += files
        return damaged


def _find_changed(folder: Path) -> list[Path]:
    """Files of a step without jobs that are not what its list says, or the list."""
    before = (folder / DONE).read_text("utf-8", errors="replace").split("\n")
    changed = {*before} ^ {*_list_files(folder)}
    names = {line.partition(" ")[2] for line in changed}
    return sorted(folder / name for name in names if is_plain_name(name)) or [folder / DONE] * bool(changed)


def _list_files(folder: Path) -> list[str]:
    """Check sum and name of each file that a step without jobs leaves."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != TEMPORARY_SUFFIX)
    return [f"{check_sum(folder / name)} {name}" for name in names if name not in (SETTINGS, DONE)]


def _describe(step: str, damaged: list[Path]) -> str:
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return (
        f"{damaged[0]}{more}: damaged since `{step}` wrote it; made again, with all that may have been made from it."
    )


# ------------------------------------------------ check sums -------------------------------------------------


@contextlib.contextmanager
def checked_file(path: Path) -> Iterator[Path]:
    """`whole_file`, with a check sum beside it, which is there before the file gets its name."""
    with whole_file(path) as temporary:
        yield temporary
        write_text(_place_of_sum(path), check_sum(temporary))


def is_as_written(file: Path) -> bool:
    """Whether the file is there, and its check sum is that of its content."""
    try:
        return _place_of_sum(file).read_bytes() == check_sum(file).encode()
    except FileNotFoundError:
        return False


def check_sum(file: Path) -> str:
    """Of a file's content, which is not held in memory."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _place_of_sum(file: Path) -> Path:
    return file.with_name(file.name + SUM_SUFFIX)
