"""64-bit hashes of texts and ids, and where they stand among the passages: 16 bytes a passage."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import numpy as np


def text_hash(text: str) -> int:
    """Equal for texts that differ in nothing but case, white space and ways of encoding a character."""
    return _hash(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def id_hash(key: str) -> int:
    """The hash of an id, which is taken literally."""
    return _hash(key)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class HashTable:
    """Numbers by hash: two sorted arrays on disk, opened memory-mapped."""

    def __init__(self, folder: Path, name: str) -> None:
        self._hashes = np.load(folder / f"{name}.hashes.npy", mmap_mode="r")
        self._numbers = np.load(folder / f"{name}.numbers.npy", mmap_mode="r")

    @staticmethod
    def write(folder: Path, name: str, hashes: np.ndarray, numbers: np.ndarray) -> None:
        """Write the arrays; of equal hashes any may be found."""
        order = np.argsort(hashes, kind="stable")
        np.save(folder / f"{name}.hashes.npy", hashes[order])
        np.save(folder / f"{name}.numbers.npy", numbers[order])

    def find(self, key: int) -> int:
        """The number that belongs to a hash, -1 where there is none."""
        place = int(np.searchsorted(self._hashes, np.uint64(key)))
        if place < len(self._hashes) and int(self._hashes[place]) == key:
            return int(self._numbers[place])
        return -1
