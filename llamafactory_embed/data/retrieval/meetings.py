"""Batches in which no text stands twice: a row that would meet one of its texts waits for a later batch.

Nearly all rows of a batch meet nobody. So the rows that come next are taken together, with all the texts that each may
bring: one sort of these says which rows might meet, and only such rows are drawn and looked at, one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from .common_texts import CommonTexts


# After this many batches that hold one of its texts, a row is left out of the epoch: planning takes linear time.
MOST_BATCHES_TRIED = 32

# Rows whose texts are compared together; more where batches are large.
ROWS_AHEAD = 2**15
BATCHES_AHEAD = 8
PLACES = 32  # bits for the number of an entry


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
        held: set[int] = set()  # the texts that rows brought which had waited
        count = 0
        while self._waiting and count < len(batch):
            row, tried = self._waiting.popleft()
            brought = self._drawn(row)
            if held.isdisjoint(brought):
                held.update(brought)
                batch[count] = row
                count += 1
            elif tried + 1 < MOST_BATCHES_TRIED:
                still_waiting.append((row, tried + 1))
        first = self._next
        refused: set[int] = set()
        while count < len(batch) and self._next < len(self._rows):
            end = min(self._next + len(batch) - count, len(self._rows))
            for place, meetings in self._ahead.suspects(first, self._next, end, held):
                count = self._take(place, batch, count)
                row = int(self._rows[place])
                if self._meets(row, meetings, first, held, refused):
                    refused.add(place)
                    still_waiting.append((row, 1))
                    self._next += 1
                else:
                    count = self._take(place + 1, batch, count)
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

    def _meets(self, row: int, meetings: Mapping[int, int], first: int, held: set[int], refused: set[int]) -> bool:
        """Whether a row brings one of these texts, or one that a row from the place `first` on brings which was not
        refused: such rows are drawn where they might bring what this one does bring."""
        brought = self._drawn(row)
        if not held.isdisjoint(brought):
            return True
        return any(
            other not in refused and not set(brought).isdisjoint(self._drawn(int(self._rows[other])))
            for text in brought
            for other in self._ahead.places_before(meetings.get(self._ahead.short(text)), first)
        )


class RowsAhead:
    """Which of the rows that come next might bring one text. They lie in a window, which moves as they are asked for.

    An entry is a text of a row as one number: the first bits of the text's own, then the row's place in the window.
    Sorted, equal texts stand side by side in the order of their rows. Different texts that begin with the same bits
    are taken for equal: their rows are looked at for nothing.
    """

    def __init__(self, rows: np.ndarray, texts: CommonTexts, window: int) -> None:
        self._rows = rows
        self._common = texts
        self._window = window
        self._start = self._end = 0

    def suspects(self, first: int, start: int, end: int, ids: Collection[int]) -> list[tuple[int, dict[int, int]]]:
        """Those of the rows at the places from `start` to `end` that might bring one of these texts, or one that a row
        between the place `first` and theirs might bring: each with such texts and where in the window they stand."""
        if not (self._start <= first and end <= self._end):
            self._look(first, max(first + self._window, 2 * end - first))
        edges = np.searchsorted(self._meetings, (np.array((start, end)) - self._start) << PLACES)
        entries = self._meetings[slice(*edges)] & ((1 << PLACES) - 1)
        entries = entries[self._places[entries] >= first - self._start]
        found: dict[int, dict[int, int]] = {}
        columns = (self._start + self._places[entries + 1], self._texts[entries], entries)
        for place, text, entry in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(place, {})[text] = entry
        for place in self._with_texts(ids, start, end) if ids else ():
            found.setdefault(place, {})
        return sorted(found.items())

    def places_before(self, entry: int | None, first: int) -> Iterator[int]:
        """The places from `first` on of the rows whose text stands there or before that."""
        while entry is not None and self._start + self._places[entry] >= first:
            yield self._start + int(self._places[entry])
            entry = entry - 1 if entry and self._texts[entry - 1] == self._texts[entry] else None

    def short(self, text: int) -> int:
        """A text as it stands in the window."""
        return text >> self._bits

    def _look(self, start: int, end: int) -> None:
        """Move the window to these places."""
        end = min(end, len(self._rows))
        self._start, self._end = start, end
        places, ids = self._common.of_rows(self._rows[start:end])
        self._bits = (end - start).bit_length()
        self._keys = ids >> self._bits << self._bits | places.astype(np.uint64)
        self._keys.sort()
        self._texts = self._keys >> self._bits
        self._places = (self._keys & ((1 << self._bits) - 1)).astype(np.int64)
        # Where an entry has the text of the next one, which is another row's: sorted by this row.
        meets = (self._texts[1:] == self._texts[:-1]) & (self._places[1:] != self._places[:-1])
        entries = np.flatnonzero(meets)
        self._meetings = self._places[entries + 1] << PLACES | entries
        self._meetings.sort()

    def _with_texts(self, ids: Collection[int], start: int, end: int) -> list[int]:
        """The places from `start` to `end` of rows that might bring one of these texts."""
        texts = np.fromiter(ids, np.uint64, len(ids)) >> self._bits << self._bits
        edges = np.searchsorted(self._keys, [texts | np.uint64(place - self._start) for place in (start, end)])
        return [
            self._start + place
            for low, high in zip(*edges.tolist(), strict=True)
            if low < high
            for place in self._places[low:high].tolist()
        ]
