"""Files of vectors that grow row by row: a `.npy` file that can be continued."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ..files import TEMPORARY_SUFFIX, write_json
from ..foreign import read_json_object


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
        before, rows = self._read_progress()
        changed = [
            f"`{name}` was {before.get(name)}, is {self._settings.get(name)}"
            for name in sorted({*before, *self._settings})
            if before.get(name) != self._settings.get(name)
        ]
        if changed and not start_anew:
            raise ValueError(
                f"{self.path} was left by an interrupted run with other settings ({'; '.join(changed)}): give those "
                "to continue it, or `--overwrite` to start anew."
            )
        self.rows = 0 if changed else rows
        return self.rows

    def _read_progress(self) -> tuple[dict[str, object], int]:
        """The settings and the number of rows that an interrupted run has left."""
        advice = f"remove it and {self.path} to start anew."
        left = read_json_object(self.progress, advice)
        settings, rows = left.get("settings"), left.get("rows")
        if not isinstance(settings, dict) or not isinstance(rows, int) or rows < 0:
            raise ValueError(f"{self.progress} is damaged: {advice}")
        return settings, rows

    def open(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        """Begin, or continue after the rows that were found."""
        self._file = open(self.path, "r+b" if self.rows else "wb")  # noqa: SIM115 (it stays open until `close`)
        if not self.rows:
            write_npy_header(self._file, shape, dtype)
        else:
            self._require_same_header(shape, dtype)
        self.first_byte = self._file.tell()
        self._file.truncate(self.first_byte + self.rows * shape[1] * dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        self._save()

    def _require_same_header(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        buffer = io.BytesIO()
        write_npy_header(buffer, shape, dtype)
        header = buffer.getvalue()
        size = len(header) + self.rows * shape[1] * dtype.itemsize
        if self._file.read(len(header)) != header or os.path.getsize(self.path) < size:
            raise ValueError(f"{self.path} is damaged: remove it and {self.progress} to start anew.")

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
