"""Texts with many common pieces, found by MinHash with banding (Broder 1997; Leskovec et al. 2014, chapter 3).

MinHash only proposes: what it proposes is compared piece by piece, so that the similarity reported is exact.
"""

from __future__ import annotations

import hashlib

import numpy as np


HASHES = 128
MOST_MISSED = 1e-3  # of pairs that are just similar enough


class MinHashTable:
    """Finds sets whose Jaccard similarity with a given one is at least a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = rows_per_band(threshold)
        draw = np.random.default_rng(0)
        # Multiply-shift: odd factors and any summands, modulo 2**64, of which the upper half is kept.
        self._factors = draw.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._summands = draw.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._by_band: dict[tuple[int, bytes], list[int]] = {}
        self._pieces: list[frozenset[str]] = []

    def add(self, pieces: frozenset[str]) -> None:
        """Give a set the next number."""
        for key in self._keys(pieces):
            self._by_band.setdefault(key, []).append(len(self._pieces))
        self._pieces.append(pieces)

    def find(self, pieces: frozenset[str]) -> list[tuple[float, int]]:
        """Similarity and number of all that are similar enough, the most similar first."""
        numbers = {number for key in self._keys(pieces) for number in self._by_band.get(key, ())}
        near = ((jaccard(pieces, self._pieces[number]), number) for number in numbers)
        return sorted((each for each in near if each[0] >= self.threshold), key=lambda each: (-each[0], each[1]))

    def _keys(self, pieces: frozenset[str]) -> list[tuple[int, bytes]]:
        digests = b"".join(hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                           for each in sorted(pieces))  # fmt: skip
        hashes = np.frombuffer(digests, dtype=np.uint64)  # [n]
        mixed = (hashes[:, None] * self._factors + self._summands) >> np.uint64(32)  # [n, HASHES]
        smallest = mixed.min(axis=0).astype(np.uint32)
        bands = range(HASHES // self._rows)
        return [(band, smallest[band * self._rows : (band + 1) * self._rows].tobytes()) for band in bands]


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The common pieces' share of all pieces."""
    return len(a & b) / len(a | b)


def rows_per_band(threshold: float) -> int:
    """How many hashes must agree in a band: as many as possible without missing what is similar enough."""
    for rows in range(HASHES, 1, -1):
        if (1 - threshold**rows) ** (HASHES // rows) <= MOST_MISSED:
            return rows
    return 1
