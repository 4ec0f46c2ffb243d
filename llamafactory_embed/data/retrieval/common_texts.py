"""Which rows cannot share a batch in an epoch, because a text would stand in it twice.

Which texts a row brings is drawn anew in every epoch, and drawing is slow beside planning. So a row is first taken
with all the texts that it could bring and another row could, too; rows are drawn only where these meet
(`meetings.py`).
"""

from __future__ import annotations

import bisect
import functools
import random
from collections.abc import Callable, Sequence

import numpy as np

from .dataset import RetrievalDataset
from .repeated_texts import RepeatedTexts, repeated_texts
from .rows import choose_negatives, choose_positive, row_seed
from .stored_rows import StoredRows


# Rows of which it is remembered what they bring: those that wait are asked again for every batch.
MOST_REMEMBERED = 2**16

SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio, odd: no two rows have one product


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
    """The texts that rows have in common in one epoch. Texts are numbers, and so is a row itself where it may come
    twice."""

    def __init__(self, texts: TextsOfTasks, epoch: int, rows_return: bool) -> None:
        self._texts = texts
        self._epoch = epoch
        self.rows_return = rows_return
        self._rng = random.Random()
        self._starts = texts.starts.tolist()
        self.drawn: Callable[[int], Sequence[int]] = functools.lru_cache(MOST_REMEMBERED)(self._draw)

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts that these rows may bring, as far as others may, too: which of the rows each belongs to [texts],
        and the texts [texts]."""
        texts = self._texts
        tasks = np.searchsorted(texts.starts, rows, side="right") - 1
        numbers = np.full(len(rows), -1)
        for task in np.unique(tasks):
            if texts.first_of_task[task] >= 0:
                mine = tasks == task
                inside = texts.rows[task].numbers_in_tables(rows[mine] - texts.starts[task])
                numbers[mine] = inside + texts.first_of_task[task]
        compared = np.flatnonzero(numbers >= 0)
        parts = []
        if texts.repeated is not None:
            counts, ids = texts.repeated.of_rows(numbers[compared])
            parts.append((np.repeat(compared, counts), ids))
        if self.rows_return:
            parts.append((compared, _row_itself(numbers[compared])))
        places, ids = (np.concatenate(each) for each in zip(*parts, strict=True))
        return places, ids

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
            inside = texts.rows[task].numbers_in_tables(np.array([place]))
            ids.append(int(_row_itself(inside + texts.first_of_task[task])[0]))
        return ids


def _row_itself(numbers: np.ndarray) -> np.ndarray:
    """What stands for a row among texts: its number, spread over 64 bits as the numbers of texts are."""
    return (numbers.astype(np.uint64) + np.uint64(1)) * SPREAD
