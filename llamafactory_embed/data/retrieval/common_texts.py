"""Which rows cannot share a batch in an epoch, because a text would stand in it twice.

Which texts a row brings is drawn anew in every epoch, and drawing is slow beside planning. So a row is first taken
with all the texts that it could bring and another row could, too; rows are drawn only where these meet.
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .repeated_texts import RepeatedTexts, repeated_texts
from .rows import RetrievalDataset, choose_negatives, choose_positive, row_seed
from .stored_rows import StoredRows


# Rows of which it is remembered what they bring: those that wait are asked again for every batch.
MOST_REMEMBERED = 2**16


class TextsOfTasks:
    """The texts that rows of tasks have in common, whatever the epoch."""

    def __init__(self, dataset: RetrievalDataset) -> None:
        self.dataset = dataset
        self.rows = [StoredRows.of(task.rows) for task in dataset.tasks]
        self.starts = np.cumsum([0, *map(len, self.rows)])
        self.counts = [dataset.num_negatives_of(task) for task in dataset.tasks]
        compared = [rows for task, rows in zip(dataset.tasks, self.rows, strict=True) if not task.own_passages_only]
        tables = [table for rows in compared for table in rows.tables]
        self.repeated: RepeatedTexts | None = repeated_texts(tables)
        self.repeats = any(rows.repeats for rows in compared)
        self.first_of_task = np.full(len(self.rows), -1)  # among the rows of `tables`; of tasks that are compared
        first = 0
        for index, (task, rows) in enumerate(zip(dataset.tasks, self.rows, strict=True)):
            if not task.own_passages_only:
                self.first_of_task[index] = first
                first += sum(map(len, rows.tables))

    def in_epoch(self, epoch: int, rows_return: bool) -> list[CommonTexts | None]:
        """For each task; None where no row of it meets another. `rows_return`: whether a batch might take a row
        twice."""
        common = CommonTexts(self, epoch, rows_return or self.repeats)
        is_free = self.repeated is None and not common.rows_return
        return [None if is_free or first < 0 else common for first in self.first_of_task]


class CommonTexts:
    """The texts that rows have in common in one epoch. Texts are numbers; a row itself is one below 0, where it may
    come twice."""

    def __init__(self, texts: TextsOfTasks, epoch: int, rows_return: bool) -> None:
        self._texts = texts
        self._epoch = epoch
        self.rows_return = rows_return
        self._rng = random.Random()
        self._starts = texts.starts.tolist()
        self.drawn: Callable[[int], Sequence[int]] = functools.lru_cache(MOST_REMEMBERED)(self._draw)

    def of_rows(self, rows: np.ndarray) -> list[list[int]]:
        """For each row the texts that it may bring, as far as others may, too."""
        texts = self._texts
        tasks = np.searchsorted(texts.starts, rows, side="right") - 1
        found: list[list[int]] = [[] for _ in range(len(rows))]
        for task in np.unique(tasks):
            if texts.first_of_task[task] < 0:
                continue
            places = np.flatnonzero(tasks == task)
            numbers = texts.rows[task].numbers_in_tables(rows[places] - texts.starts[task])
            numbers += texts.first_of_task[task]
            ids = [[]] * len(places) if texts.repeated is None else texts.repeated.of_rows(numbers)
            for place, number, of_row in zip(places.tolist(), numbers.tolist(), ids, strict=True):
                found[place] = [*of_row, -1 - number] if self.rows_return else of_row
        return found

    def _draw(self, row: int) -> Sequence[int]:
        """The texts that a row does bring."""
        texts = self._texts
        task = bisect.bisect_right(self._starts, row) - 1
        place = row - self._starts[task]
        table, number = texts.rows[task].table_and_number(place)
        ids, positives, leading = table.ids_and_counts(number)
        negatives = len(ids) - 1 - positives
        count = texts.counts[task]
        if positives > 1 or 0 < count < negatives:
            self._rng.seed(row_seed(texts.dataset.seed, self._epoch, row))
            positive = choose_positive(positives, self._rng)
            places = choose_negatives(count, negatives, leading, self._rng)
            ids = [ids[0], ids[1 + positive], *(ids[1 + positives + each] for each in places)]
        elif count <= 0:
            ids = ids[:2]
        if self.rows_return:
            ids.append(-1 - int(texts.rows[task].numbers_in_tables(np.array([place]))[0] + texts.first_of_task[task]))
        return ids


class TextsOfBatch:
    """The texts of a batch. Of rows that have met no other yet it holds all that they may bring."""

    def __init__(self, common: CommonTexts) -> None:
        self._drawn = common.drawn
        self._holder: dict[int, int] = {}  # text → the row that has it
        self._not_drawn: dict[int, Sequence[int]] = {}

    def take(self, row: int, ids: Sequence[int]) -> bool:
        """Take a row with its texts, unless one of them is there."""
        if self._holder.keys().isdisjoint(ids):
            self._not_drawn[row] = ids
            self._hold(row, ids)
            return True
        brought = self._drawn(row)
        for other in {self._holder[each] for each in brought if each in self._holder}.intersection(self._not_drawn):
            for each in self._not_drawn.pop(other):
                self._holder.pop(each, None)
            self._hold(other, self._drawn(other))
        if not self._holder.keys().isdisjoint(brought):
            return False
        self._hold(row, brought)
        return True

    def _hold(self, row: int, ids: Iterable[int]) -> None:
        self._holder.update(dict.fromkeys(ids, row))
