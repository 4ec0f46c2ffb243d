"""Arrays on disk, of which only what is read comes into memory: embeddings in chunks, and what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np


def map_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped.

    NumPy's own map keeps a file descriptor as long as it lives, and a process may have 1,024 of them: eight million
    passages in chunks of 8,192. Arrow's map keeps none.
    """
    import pyarrow

    with open(path, "rb") as file:
        shape, is_by_column, dtype = _read_header(file)
        start = file.tell()
    with pyarrow.memory_map(str(path)) as whole:
        content = whole.read_buffer(whole.size())
    array = np.frombuffer(content, dtype=dtype, offset=start)
    return array.reshape(shape, order="F" if is_by_column else "C")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


class ChunkedVectors:
    """float32 vectors [n, d] in `.npy` files of `chunk` rows each (the last may have fewer), memory-mapped."""

    def __init__(self, paths: Sequence[Path], chunk: int) -> None:
        self._chunks = [map_array(path) for path in paths]
        self._chunk = chunk
        self.dimension = self._chunks[0].shape[1]
        self._count = sum(map(len, self._chunks))

    def __len__(self) -> int:
        return self._count

    def parts(self, start: int, stop: int) -> list[np.ndarray]:
        """The rows [start, stop) as pieces that are still on disk."""
        pieces = []
        while start < stop:
            number, first = divmod(start, self._chunk)
            piece = self._chunks[number][first : first + stop - start]
            pieces.append(piece)
            start += len(piece)
        return pieces

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows [start, stop) in memory."""
        result = np.empty((stop - start, self.dimension), dtype=np.float32)
        filled = 0
        for piece in self.parts(start, stop):
            result[filled : filled + len(piece)] = piece
            filled += len(piece)
        return result

    def gather(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows at any positions, in memory [len(positions), d]."""
        result = np.empty((len(positions), self.dimension), dtype=np.float32)
        numbers, rows = np.divmod(np.asarray(positions, dtype=np.int64), self._chunk)
        for number in np.unique(numbers):
            here = numbers == number
            result[here] = self._chunks[number][rows[here]]
        return result
