"""Vectors in several files on disk, read as if they were one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class ChunkedVectors:
    """float32 vectors [n, d] in `.npy` files of `chunk` rows each (the last may have fewer), memory-mapped."""

    def __init__(self, paths: Sequence[Path], chunk: int) -> None:
        self._chunks = [np.asarray(np.load(path, mmap_mode="r")) for path in paths]
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


class VectorsInMemory(ChunkedVectors):
    """An array that is searched like those on disk."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._chunks = [np.ascontiguousarray(vectors, dtype=np.float32)]
        self._chunk = max(1, len(vectors))
        self.dimension = vectors.shape[1]
        self._count = len(vectors)
