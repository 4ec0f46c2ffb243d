"""Ways of telling that a query is one of the test queries: equal texts, SimHash and MinHash.

SimHash (Charikar 2002; Manku et al. 2007), as tDRO uses it, is 64 bits of which similar texts share most. Only letters
and digits count, in windows of four characters. So no words are needed: tDRO splits Chinese into words first, but it
drops the spaces between them again, and the fingerprint is the same.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections import Counter
from typing import Any, Protocol

import numpy as np

from ...evaluation.answers import words
from ...files import digest
from ..material import text_hash
from .key_table import KeyTable
from .options import DedupOptions


BITS = 64  # of a SimHash fingerprint
SIMHASH_WINDOW = 4  # characters

HASHES = 128  # of a MinHash signature
MOST_MISSED = 1e-3  # of pairs that are just similar enough
KEY_MASK = 2**64 - 1


# ------------------------------------------------ methods -----------------------------------------------------


class Matcher(Protocol):
    """Holds test queries, numbered in the order in which they are added."""

    def add(self, text: str) -> None:
        """Give a test query the next number."""

    def find(self, text: str) -> tuple[int, str] | None:
        """The number of the nearest duplicate and how near it is, or None."""


class ExactMatcher:
    """Texts that differ in nothing but case, white space and ways of encoding a character."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._count = 0

    def add(self, text: str) -> None:
        self._numbers.setdefault(text_hash(text), self._count)
        self._count += 1

    def find(self, text: str) -> tuple[int, str] | None:
        number = self._numbers.get(text_hash(text))
        return None if number is None else (number, "equal")


class SimHashMatcher:
    """Fingerprints that differ in few bits. A text without letters and digits is never a duplicate."""

    def __init__(self, distance: int) -> None:
        self._table = FingerprintTable(distance)

    def add(self, text: str) -> None:
        self._table.add(simhash(text))

    def find(self, text: str) -> tuple[int, str] | None:
        near = self._table.find(simhash(text)) if characters_that_count(text) else []
        return (near[0][1], f"{near[0][0]} bits") if near else None


class MinHashMatcher:
    """Texts with many common pieces. A text without letters and digits has no pieces and is never a duplicate."""

    def __init__(self, similarity: float, pieces: str, window: int) -> None:
        self._table = MinHashTable(similarity)
        self._by_words = pieces == "words"
        self._window = window

    def add(self, text: str) -> None:
        self._table.add(self._pieces(text))

    def find(self, text: str) -> tuple[int, str] | None:
        pieces = self._pieces(text)
        near = self._table.find(pieces) if pieces != frozenset([""]) else []
        return (near[0][1], f"{near[0][0]:.0%} common") if near else None

    def _pieces(self, text: str) -> frozenset[str]:
        if self._by_words:
            split = words(text)
            pairs = frozenset(f"{first} {second}" for first, second in itertools.pairwise(split))
            return pairs or frozenset(split) or frozenset([""])
        return frozenset(windows(characters_that_count(text), self._window))


def make_matchers(options: DedupOptions) -> dict[str, Matcher]:
    """The matchers of the options' methods, in their order."""
    made: dict[str, Matcher] = {}
    for method in options.methods:
        if method == "exact":
            made[method] = ExactMatcher()
        elif method == "simhash":
            made[method] = SimHashMatcher(options.simhash_distance)
        else:
            made[method] = MinHashMatcher(options.minhash_similarity, options.minhash_pieces, options.minhash_window)
    return made


# ------------------------------------------------ SimHash -----------------------------------------------------


def characters_that_count(text: str) -> str:
    """Lower-case letters and digits of any script, without the characters between them."""
    return "".join(re.findall(r"\w+", text.replace("_", "").lower()))


def windows(text: str, size: int) -> list[str]:
    """All runs of `size` neighbouring characters; the whole text where it is shorter."""
    return [text[start : start + size] for start in range(max(len(text) - size + 1, 1))]


def simhash(text: str) -> int:
    """The fingerprint: a bit is 1 where it is 1 in the hashes of more than half of the windows."""
    counts = Counter(windows(characters_that_count(text), SIMHASH_WINDOW))
    digests = b"".join(hashlib.md5(each.encode("utf-8", "surrogatepass")).digest()[-BITS // 8 :] for each in counts)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(len(counts), BITS)
    weights = np.fromiter(counts.values(), dtype=np.int64)
    majority = 2 * (weights @ bits.astype(np.int64)) > weights.sum()  # [64], the most significant bit first
    return int.from_bytes(np.packbits(majority).tobytes(), "big")


def hamming_distance(a: int, b: int) -> int:
    """In how many bits two fingerprints differ."""
    return (a ^ b).bit_count()


class FingerprintTable:
    """Finds fingerprints within a Hamming distance k: cut into k + 1 blocks, two such agree in at least one block."""

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = [BITS * number // (distance + 1) for number in range(distance + 2)]
        self._blocks = list(itertools.pairwise(edges))
        self._by_block = [KeyTable() for _ in self._blocks]
        self._fingerprints = array("Q")

    def add(self, fingerprint: int) -> None:
        """Give a fingerprint the next number."""
        for table, key in zip(self._by_block, self._keys(fingerprint), strict=True):
            table.add(key, len(self._fingerprints))
        self._fingerprints.append(fingerprint)

    def find(self, fingerprint: int) -> list[tuple[int, int]]:
        """Distance and number of all that are near enough, the nearest first."""
        keys = self._keys(fingerprint)
        numbers = {number for table, key in zip(self._by_block, keys, strict=True) for number in table.find(key)}
        near = ((hamming_distance(fingerprint, self._fingerprints[number]), number) for number in numbers)
        return sorted(each for each in near if each[0] <= self.distance)

    def _keys(self, fingerprint: int) -> list[int]:
        return [fingerprint >> start & ((1 << end - start) - 1) for start, end in self._blocks]


# ------------------------------------------------ MinHash -----------------------------------------------------


class MinHashTable:
    """Finds sets whose Jaccard similarity with a given one is at least a threshold.

    MinHash with banding (Broder 1997; Leskovec et al. 2014, chapter 3) only proposes: its proposals are compared piece
    by piece, so that the similarity reported is exact. Pieces are held as digests of 8 bytes.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = rows_per_band(threshold)
        draw = np.random.default_rng(0)
        # Multiply-shift: odd factors and any summands, modulo 2**64, of which the upper half is kept.
        self._factors = draw.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._summands = draw.integers(0, 2**63, HASHES, dtype=np.uint64)
        self._by_band = KeyTable()
        self._pieces = array("Q")  # of all sets, one after the other
        self._ends = array("q", [0])

    def add(self, pieces: frozenset[str]) -> None:
        """Give a set the next number."""
        hashes = _hash_pieces(pieces)
        for key in self._keys(hashes):
            self._by_band.add(key, len(self._ends) - 1)
        self._pieces.frombytes(hashes.tobytes())
        self._ends.append(len(self._pieces))

    def find(self, pieces: frozenset[str]) -> list[tuple[float, int]]:
        """Similarity and number of all that are similar enough, the most similar first."""
        hashes = _hash_pieces(pieces)
        numbers = {number for key in self._keys(hashes) for number in self._by_band.find(key)}
        wanted = frozenset(hashes.tolist())
        near = ((jaccard(wanted, self._set(number)), number) for number in numbers)
        return sorted((each for each in near if each[0] >= self.threshold), key=lambda each: (-each[0], each[1]))

    def _set(self, number: int) -> frozenset[int]:
        return frozenset(self._pieces[self._ends[number] : self._ends[number + 1]])

    def _keys(self, hashes: np.ndarray) -> list[int]:
        """A key for each band. Two bands whose keys agree by chance propose a set in vain."""
        mixed = (hashes[:, None] * self._factors + self._summands) >> np.uint64(32)  # [n, HASHES]
        smallest = mixed.min(axis=0).astype(np.uint32)
        bands = range(HASHES // self._rows)
        parts = ((band, smallest[band * self._rows : (band + 1) * self._rows].tobytes()) for band in bands)
        return [hash(part) & KEY_MASK for part in parts]


def _hash_pieces(pieces: frozenset[str]) -> np.ndarray:
    return np.frombuffer(b"".join(map(digest, sorted(pieces))), dtype=np.uint64)


def jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    """The common pieces' share of all pieces."""
    return len(a & b) / len(a | b)


def rows_per_band(threshold: float) -> int:
    """How many hashes must agree in a band: as many as possible without missing sets that are similar enough."""
    for rows in range(HASHES, 1, -1):
        if (1 - threshold**rows) ** (HASHES // rows) <= MOST_MISSED:
            return rows
    return 1
