"""Files of vectors that grow row by row: a `.npy` file that can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ..files import TEMPORARY_SUFFIX, write_json


VECTORS_SUFFIX = ".vectors" + TEMPORARY_SUFFIX
PROGRESS_SUFFIX = ".progress.json"
LOCK_SUFFIX = ".lock"


def write_npy_header(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype) -> None:
    """What `np.save` puts before the rows."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class UnfinishedVectors:
    """The `.npy` file under its temporary name, and beside it how many of its rows are whole, and with which settings
    they were made.

    Rows are on the disk before the number that counts them, so whenever the process is killed, what is counted is
    whole; what comes after it is cut off by the next run.
    """

    def __init__(self, target: Path, settings: Mapping[str, object]) -> None:
        """`settings` are what the rows depend on, by the names of options."""
        self.target = target
        self.path = target.with_name(target.name + VECTORS_SUFFIX)
        self.progress = target.with_name(target.name + PROGRESS_SUFFIX)
        self._settings = dict(settings)
        self._lock = FileLock(target.with_name(target.name + LOCK_SUFFIX))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"`output`: another run is writing {target}; wait for it, or name another file."
            ) from None
        self.rows = 0

    def find(self, start_anew: bool) -> int:
        """How many rows an interrupted run has left. Those of other settings are refused, or discarded if `start_anew`
        allows it."""
        if not (self.progress.is_file() and self.path.is_file()):
            return 0
        try:
            left = json.loads(self.progress.read_text(encoding="utf-8"))
            left = {"settings": dict(left["settings"]), "rows": int(left["rows"])}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.progress} is damaged ({error}): remove it to start anew.") from error
        changed = [
            f"`{name}` was {left['settings'].get(name)}, is {self._settings.get(name)}"
            for name in sorted({*left["settings"], *self._settings})
            if left["settings"].get(name) != self._settings.get(name)
        ]
        if changed and not start_anew:
            raise ValueError(
                f"{self.path} was left by an interrupted run with other settings ({'; '.join(changed)}): give those "
                "to continue it, or `--overwrite` to start anew."
            )
        self.rows = 0 if changed else left["rows"]
        return self.rows

    def open(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        """Begin, or continue after the rows that were found."""
        self._file = open(self.path, "r+b" if self.rows else "wb")  # noqa: SIM115 (it stays open until `close`)
        if not self.rows:
            write_npy_header(self._file, shape, dtype)
        else:
            self._require_whole(shape, dtype)
        self.first_byte = self._file.tell()
        self._file.truncate(self.first_byte + self.rows * shape[1] * dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        self._save()

    def _require_whole(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        """Read the header, and see that all rows that were counted are there: others would be continued as zeros."""
        try:
            np.lib.format.read_magic(self._file)
            found, _, kind = np.lib.format.read_array_header_1_0(self._file)
            size = os.fstat(self._file.fileno()).st_size
            is_whole = (found, kind) == (shape, dtype)
            is_whole &= size >= self._file.tell() + self.rows * shape[1] * dtype.itemsize
        except (ValueError, EOFError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{self.path} is damaged, or shorter than {self.progress} says: remove it to start anew.")

    def append(self, vectors: np.ndarray) -> None:
        """Write rows and count them."""
        self._file.write(np.ascontiguousarray(vectors).tobytes())
        self.rows += len(vectors)
        self._save()

    def read(self, rows_at_once: int) -> Iterator[np.ndarray]:
        """All rows again, in portions."""
        with open(self.path, "rb") as file:
            np.lib.format.read_magic(file)
            (count, columns), _, dtype = np.lib.format.read_array_header_1_0(file)
            for start in range(0, count, rows_at_once):
                rows = min(rows_at_once, count - start)
                yield np.frombuffer(file.read(rows * columns * dtype.itemsize), dtype).reshape(rows, columns)

    def take_name(self) -> None:
        """The finished file takes the target's name."""
        os.replace(self.path, self.target)

    def remove_traces(self) -> None:
        """Remove what is of no use when the target is there."""
        for path in (self.progress, self.path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run come."""
        if hasattr(self, "_file"):
            self._file.close()
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _save(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self.progress, {"settings": self._settings, "rows": self.rows})
