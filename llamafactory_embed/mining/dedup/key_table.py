"""Numbers found by 64-bit keys: sixteen bytes an entry, where a dictionary of lists takes two hundred or more."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np


class KeyTable:
    """Entries are added first and looked up then; they are sorted when the first is looked up."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._numbers = array("q")
        self._is_sorted = True

    def add(self, key: int, number: int) -> None:
        """Let a key, which may have several numbers, find this one too."""
        self._keys.append(key)
        self._numbers.append(number)
        self._is_sorted = False

    def find(self, key: int) -> Iterator[int]:
        """All numbers of a key, in the order in which they came."""
        if not self._is_sorted:
            self._sort()
        place = bisect_left(self._keys, key)
        while place < len(self._keys) and self._keys[place] == key:
            yield self._numbers[place]
            place += 1

    def _sort(self) -> None:
        keys = np.array(self._keys, dtype=np.uint64)
        order = keys.argsort(kind="stable")
        numbers = np.array(self._numbers, dtype=np.int64)
        self._keys, self._numbers = array("Q", keys[order].tobytes()), array("q", numbers[order].tobytes())
        self._is_sorted = True
