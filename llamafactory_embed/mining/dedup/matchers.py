"""Ways of telling that a query is one of the test queries."""

from __future__ import annotations

import itertools
from typing import Protocol

from ...evaluation.answers import words
from ..text_hash import text_hash
from .minhash import MinHashTable
from .options import DedupOptions
from .simhash import FingerprintTable, characters_that_count, simhash, windows


class Matcher(Protocol):
    """Holds test queries by the order in which they are added."""

    def add(self, text: str) -> None:
        """Give a test query the next number."""

    def find(self, text: str) -> tuple[int, str] | None:
        """The number of the nearest duplicate and how near it is."""


class ExactMatcher:
    """Equal but for case, white space and ways of encoding a character."""

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
    """Fingerprints that differ in a few bits at most; a text without letters and digits is nobody's duplicate."""

    def __init__(self, distance: int) -> None:
        self._table = FingerprintTable(distance)

    def add(self, text: str) -> None:
        self._table.add(simhash(text))

    def find(self, text: str) -> tuple[int, str] | None:
        found = self._table.find(simhash(text)) if characters_that_count(text) else []
        return (found[0][1], f"{found[0][0]} bits") if found else None


class MinHashMatcher:
    """Many common pieces; a text without letters and digits has none and is nobody's duplicate."""

    def __init__(self, similarity: float, pieces: str, window: int) -> None:
        self._table = MinHashTable(similarity)
        self._by_words = pieces == "words"
        self._window = window

    def add(self, text: str) -> None:
        self._table.add(self._pieces(text))

    def find(self, text: str) -> tuple[int, str] | None:
        pieces = self._pieces(text)
        found = self._table.find(pieces) if pieces != frozenset([""]) else []
        return (found[0][1], f"{found[0][0]:.0%} common") if found else None

    def _pieces(self, text: str) -> frozenset[str]:
        if self._by_words:
            split = words(text)
            pairs = frozenset(f"{first} {second}" for first, second in itertools.pairwise(split))
            return pairs or frozenset(split) or frozenset([""])
        return frozenset(windows(characters_that_count(text), self._window))


def make_matchers(options: DedupOptions) -> dict[str, Matcher]:
    """The matchers that the options name, in their order."""
    made: dict[str, Matcher] = {}
    for method in options.methods:
        if method == "exact":
            made[method] = ExactMatcher()
        elif method == "simhash":
            made[method] = SimHashMatcher(options.simhash_distance)
        else:
            made[method] = MinHashMatcher(options.minhash_similarity, options.minhash_pieces, options.minhash_window)
    return made
