"""Batches in which no text stands twice: a row that would meet one of its texts waits for a later batch.

Nearly all rows of a batch meet nobody. So the rows that come next are taken together, with all the texts that each may
bring: one sort of these says which rows might meet, and only such rows are drawn and looked at, one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from .common_texts import CommonTexts


# After this many batches that hold one of its texts, a row is left out of the epoch: planning takes linear time.
MOST_BATCHES_TRIED = 32

# Rows whose texts are compared together; more where batches are large.
ROWS_AHEAD = 2**15
BATCHES_AHEAD = 8


def without_meetings(rows: np.ndarray, batches: np.ndarray, texts: CommonTexts) -> np.ndarray:
    """Fill batches [batches, rows of a batch] with these rows in their order; the batches that became full."""
    rest = RowsToPlace(rows, texts, batches.shape[1])
    for number, batch in enumerate(batches):
        if not rest.fill(batch):
            return batches[:number]
    return batches


class RowsToPlace:
    """The rows that no batch has yet: some wait, the others come after them."""

    def __init__(self, rows: np.ndarray, texts: CommonTexts, batch_size: int) -> None:
        self._rows = rows
        self._drawn = texts.drawn
        self._ahead = RowsAhead(rows, texts, max(ROWS_AHEAD, BATCHES_AHEAD * batch_size))
        self._next = 0
        self._waiting: deque[tuple[int, int]] = deque()  # (row, batches tried)

    def fill(self, batch: np.ndarray) -> bool:
        """Write the rows of the next batch [rows]; False where they do not fill it."""
        still_waiting: deque[tuple[int, int]] = deque()
        held: set[int] = set()  # the texts of its rows, as far as these might meet others
        count = 0
        while self._waiting and count < len(batch):
            row, tried = self._waiting.popleft()
            if self._enters(row, held):
                batch[count] = row
                count += 1
            elif tried + 1 < MOST_BATCHES_TRIED:
                still_waiting.append((row, tried + 1))
        first, brought_by_waiting = self._next, list(held)
        refused: set[int] = set()
        while count < len(batch) and self._next < len(self._rows):
            end = min(self._next + len(batch) - count, len(self._rows))
            for place, others in self._ahead.meetings(first, self._next, end, brought_by_waiting):
                count = self._take(place, batch, count)
                for other in others:
                    if other not in refused:
                        held.update(self._drawn(int(self._rows[other])))
                row = int(self._rows[place])
                if self._enters(row, held):
                    count = self._take(place + 1, batch, count)
                else:
                    refused.add(place)
                    still_waiting.append((row, 1))
                    self._next = place + 1
            count = self._take(end, batch, count)
        still_waiting.extend(self._waiting)
        self._waiting = still_waiting
        return count == len(batch)

    def _take(self, end: int, batch: np.ndarray, count: int) -> int:
        """Put the next rows before the place `end` into a batch that has `count`; how many it has then."""
        more = end - self._next
        batch[count : count + more] = self._rows[self._next : end]
        self._next = end
        return count + more

    def _enters(self, row: int, held: set[int]) -> bool:
        """Whether a row brings none of these texts; then its own are added to them."""
        brought = self._drawn(row)
        if not held.isdisjoint(brought):
            return False
        held.update(brought)
        return True


class RowsAhead:
    """Which of the rows that come next might bring one text. They lie in a window, which moves as they are asked for.

    A text of a row is one number: the first bits of the text's own, then the row's place in the window. Sorted, equal
    texts stand side by side in the order of their rows. Different texts that begin with the same bits are taken for
    equal: their rows are looked at for nothing.
    """

    def __init__(self, rows: np.ndarray, texts: CommonTexts, window: int) -> None:
        self._rows = rows
        self._texts = texts
        self._window = window
        self._start = self._end = 0

    def meetings(self, first: int, start: int, end: int, ids: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Those of the rows at the places from `start` to `end` that might bring one of these texts, or one that a row
        from the place `first` on brings, too: each with the places of the last such rows before it."""
        if not (self._start <= first and end <= self._end):
            self._look(first, max(first + self._window, 2 * end - first))
        lowest, highest = np.searchsorted(self._later, (start - self._start, end - self._start))
        later, earlier = self._later[lowest:highest], self._earlier[lowest:highest]
        in_batch = earlier >= first - self._start
        found: dict[int, list[int]] = {}
        places = (self._start + each[in_batch] for each in (later, earlier))
        for place, other in zip(*(each.tolist() for each in places), strict=True):
            found.setdefault(place, []).append(other)
        for place in self._with_texts(ids, start, end):
            found.setdefault(place, [])
        return sorted(found.items())

    def _look(self, start: int, end: int) -> None:
        """Move the window to these places."""
        end = min(end, len(self._rows))
        self._start, self._end = start, end
        places, ids = self._texts.of_rows(self._rows[start:end])
        self._bits = np.uint64((end - start).bit_length())
        self._keys = self._first_bits(ids) | places.astype(np.uint64)
        self._keys.sort()
        of_text = self._keys >> self._bits
        place = self._keys & self._all_places
        meets = (of_text[1:] == of_text[:-1]) & (place[1:] != place[:-1])
        pairs = place[1:][meets] << self._bits | place[:-1][meets]
        pairs.sort()
        self._later = (pairs >> self._bits).astype(np.int64)
        self._earlier = (pairs & self._all_places).astype(np.int64)

    def _with_texts(self, ids: Iterable[int], start: int, end: int) -> list[int]:
        """The places from `start` to `end` of rows that might bring one of these texts."""
        texts = self._first_bits(np.array(list(ids), np.uint64))
        begins = np.searchsorted(self._keys, texts | np.uint64(start - self._start))
        ends = np.searchsorted(self._keys, texts | np.uint64(end - self._start))
        return [
            self._start + int(key & self._all_places)
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
            for key in self._keys[begin:end]
        ]

    @property
    def _all_places(self) -> np.uint64:
        return (np.uint64(1) << self._bits) - np.uint64(1)

    def _first_bits(self, ids: np.ndarray) -> np.ndarray:
        return ids >> self._bits << self._bits
