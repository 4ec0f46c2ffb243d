"""Records on disk, of which only those that are asked for come into memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np


class RecordWriter:
    """Appends JSON lines; `finish` makes them readable by number."""

    def __init__(self, folder: Path, name: str) -> None:
        self._spans_path = folder / f"{name}.spans.npy"
        self._file = open(folder / f"{name}.jsonl", "wb")  # noqa: SIM115 - closed by `finish`
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, record: Any) -> None:
        """Write one record."""
        content = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def finish(self, selected: np.ndarray | None = None) -> None:
        """Close the file; with `selected`, only these records are counted, in that order."""
        self._file.close()
        ends = np.frombuffer(self._ends, dtype=np.int64)
        spans = np.stack([ends[:-1], ends[1:]], axis=1)
        np.save(self._spans_path, spans if selected is None else spans[selected])


class Records(Sequence[Any]):
    """Reads what a `RecordWriter` wrote."""

    def __init__(self, folder: Path, name: str) -> None:
        self._spans = np.asarray(np.load(folder / f"{name}.spans.npy", mmap_mode="r"))  # [n, 2], not in memory
        path = folder / f"{name}.jsonl"
        empty = path.stat().st_size == 0
        self._bytes = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, key: int) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return [self._read(number) for number in range(*key.indices(len(self)))]
        return self._read(key)

    def _read(self, number: int) -> Any:
        start, end = self._spans[number]
        return json.loads(self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass"))
