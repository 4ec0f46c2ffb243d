"""SimHash (Charikar 2002; Manku et al. 2007): 64 bits of which similar texts share most, as tDRO uses it.

Only letters and digits count, in windows of four characters. So no words are needed: tDRO splits Chinese into words
first, but the spaces that this puts in are dropped again, and the fingerprint is the same.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter

import numpy as np


BITS = 64
WINDOW = 4


def characters_that_count(text: str) -> str:
    """Lower-case letters and digits of any script, without what stands between them."""
    return "".join(re.findall(r"\w+", text.replace("_", "").lower()))


def windows(text: str, size: int) -> list[str]:
    """All runs of `size` neighbouring characters; the whole text where it is shorter."""
    return [text[start : start + size] for start in range(max(len(text) - size + 1, 1))]


def simhash(text: str) -> int:
    """The fingerprint: a bit is 1 where it is 1 in the hashes of more than half of the windows."""
    counts = Counter(windows(characters_that_count(text), WINDOW))
    digests = b"".join(hashlib.md5(each.encode("utf-8", "surrogatepass")).digest()[-BITS // 8 :] for each in counts)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(len(counts), BITS)
    weights = np.fromiter(counts.values(), dtype=np.int64)
    majority = 2 * (weights @ bits.astype(np.int64)) > weights.sum()  # [64], the most significant bit first
    return int.from_bytes(np.packbits(majority).tobytes(), "big")


def hamming_distance(a: int, b: int) -> int:
    """In how many bits two fingerprints differ."""
    return (a ^ b).bit_count()


class FingerprintTable:
    """Finds fingerprints within a Hamming distance k: cut into k + 1 blocks, two such agree in one block at least."""

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = [BITS * number // (distance + 1) for number in range(distance + 2)]
        self._blocks = list(itertools.pairwise(edges))
        self._by_block: dict[tuple[int, int], list[int]] = {}
        self._fingerprints: list[int] = []

    def add(self, fingerprint: int) -> None:
        """Give a fingerprint the next number."""
        for key in self._keys(fingerprint):
            self._by_block.setdefault(key, []).append(len(self._fingerprints))
        self._fingerprints.append(fingerprint)

    def find(self, fingerprint: int) -> list[tuple[int, int]]:
        """Distance and number of all that are near enough, the nearest first."""
        numbers = {number for key in self._keys(fingerprint) for number in self._by_block.get(key, ())}
        near = ((hamming_distance(fingerprint, self._fingerprints[number]), number) for number in numbers)
        return sorted(each for each in near if each[0] <= self.distance)

    def _keys(self, fingerprint: int) -> list[tuple[int, int]]:
        return [
            (number, fingerprint >> start & ((1 << end - start) - 1))
            for number, (start, end) in enumerate(self._blocks)
        ]
