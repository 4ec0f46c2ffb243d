"""The rows of all tasks as torch's data loaders want them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from torch.utils.data import Dataset

from .rows import Example, Row, Task, draw_example, negatives_in_batch, row_random


class RetrievalDataset(Dataset[Example]):
    """All rows of all tasks under one index; an item is drawn anew in each epoch.

    The key is `(epoch, row_index)`, as `GlobalBatchSampler` yields it.
    """

    def __init__(self, tasks: Sequence[Task], num_negatives: int = 0, seed: int = 42) -> None:
        self.tasks = list(tasks)
        self.num_negatives = num_negatives
        self.seed = seed
        self._ends = list(itertools.accumulate(len(task.rows) for task in self.tasks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        epoch, index = (0, key) if isinstance(key, int) else key
        task_index, row = self.locate(index)
        task = self.tasks[task_index]
        count = self.num_negatives_of(task)
        return draw_example(task, task_index, row, index, count, row_random(self.seed, epoch, index))

    def num_negatives_of(self, task: Task) -> int:
        """How many negatives a row of the task brings to its batch."""
        return negatives_in_batch(task.objective, self.num_negatives)

    def locate(self, index: int) -> tuple[int, Row]:
        """The task's position and the row with this index."""
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        task_index = bisect.bisect_right(self._ends, index)
        start = self._ends[task_index] - len(self.tasks[task_index].rows)
        return task_index, self.tasks[task_index].rows[index - start]
