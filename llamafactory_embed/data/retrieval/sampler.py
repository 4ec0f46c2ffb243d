"""Which rows share a batch: a plan of global batches, the same on every rank and resumable at any batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from .common_texts import TextsOfTasks
from .dataset import RetrievalDataset
from .plan import BatchingOptions, Plan, plan_batches
from .weights import task_shares


logger = logging.getLogger(__name__)

# A task may fall short by one batch, or by this part of its rows, before it is worth a warning.
SMALL_SHORTFALL = 0.01


class GlobalBatchSampler:
    """Batches for one rank: its part of each global batch, so that n ranks train on what one process would.

    Yields lists of `(epoch, row_index)` for `RetrievalDataset`. The plan depends on nothing but the data, the
    options, the seed and the epoch; skipping the first n batches of an epoch therefore resumes it exactly.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        batch_size: int,
        options: BatchingOptions | None = None,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
        texts: TextsOfTasks | None = None,
    ) -> None:
        """`batch_size` is that of all ranks together; `texts` are those of the data set, where they are known."""
        if batch_size % world_size:
            raise ValueError(f"The global batch of {batch_size} rows cannot be split over {world_size} processes.")
        self.dataset = dataset
        self.global_batch_size = batch_size
        self.batch_size = batch_size // world_size
        self.drop_last = True  # what the host's data loader asks of a batch sampler
        self.options = options or BatchingOptions()
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        names = [task.name for task in dataset.tasks]
        self.sizes = [len(task.rows) for task in dataset.tasks]
        self.shares = task_shares(
            self.options.task_weights, names, self.sizes, temperature=self.options.sampling_temperature
        )
        self._texts = texts or TextsOfTasks(dataset)
        self._plan: tuple[int, Plan] | None = None
        self._check()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches follow; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan().batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        start = self.rank * self.batch_size
        for batch in self.plan().batches:
            yield [(epoch, row) for row in batch[start : start + self.batch_size].tolist()]

    def plan(self) -> Plan:
        """The global batches of the current epoch."""
        if self._plan is None or self._plan[0] != self.epoch:
            may_return = self.options.task_batching == "mixed" and self.shares is not None
            texts = self._texts.in_epoch(self.epoch, may_return)
            plan = plan_batches(
                self.sizes, self.global_batch_size, self.options, self.shares, self.seed + self.epoch, texts
            )
            if plan.rows_left_out:
                logger.info(
                    "Epoch %d: %d rows are left out of full batches",
                    self.epoch,
                    plan.rows_left_out,
                )
            self._plan = (self.epoch, plan)
        return self._plan[1]

    def _check(self) -> None:
        """Refuse what would train on nothing, and warn of what trains on less than the recipe says."""
        if self.options.task_batching == "mixed" and any(map(self.dataset.num_negatives_of, self.dataset.tasks)):
            refuse_mixing_uneven_tasks({task.name: bool(task.rows[0].negatives) for task in self.dataset.tasks})
        if self.options.task_batching == "homogeneous":
            for task, size, share in zip(self.dataset.tasks, self.sizes, self.shares or self.sizes, strict=True):
                if share > 0 and size < self.global_batch_size:
                    problem = f"task `{task.name}` has {size} rows, fewer than the global batch of "
                    problem += f"{self.global_batch_size}, and never fills one"
                    if self.shares is not None or len(self.sizes) == 1:
                        raise ValueError(f"`per_device_train_batch_size`: {problem}; lower it or mix the tasks.")
                    logger.warning("`per_device_train_batch_size`: %s", problem)
        if not len(self.plan().batches):
            raise ValueError(
                f"`per_device_train_batch_size`: no batch of {self.global_batch_size} rows without duplicate texts "
                f"can be made of the {len(self.dataset)} rows; lower it."
            )
        if self.rank == 0:
            self._warn_of_missed_shares()

    def _warn_of_missed_shares(self) -> None:
        """Name the tasks that do not get the rows which the recipe gives them in the first epoch."""
        due, placed = self._rows_due(), self._rows_placed()
        for task, rows_due, rows in zip(self.dataset.tasks, due, placed, strict=True):
            never = rows == 0 and rows_due > 0 and self.options.task_batching == "homogeneous"
            if not never and rows_due - rows <= max(self.global_batch_size, SMALL_SHORTFALL * rows_due):
                continue
            if rows == 0 and rows_due < self.global_batch_size:
                reason = f"its share is less than one of the {len(self)} batches"
            else:
                reason = (
                    f"no text stands twice in a batch, and its {len(task.rows):,} rows have too few different ones"
                )
            logger.warning(
                "Task `%s` fills %s rows of an epoch instead of %s (a share of %.3f instead of %.3f): %s.",
                task.name,
                f"{rows:,}",
                f"{rows_due:,.0f}",
                rows / sum(placed),
                rows_due / sum(due),
                reason,
            )

    def _rows_due(self) -> list[float]:
        """How many rows of an epoch the recipe gives each task."""
        whole = self.global_batch_size if self.options.task_batching == "homogeneous" else 1
        usable = [size // whole * whole for size in self.sizes]
        if self.shares is None:
            return list(map(float, usable))
        total = sum(size for size, share in zip(usable, self.shares, strict=True) if share > 0)
        return [share * total for share in self.shares]

    def _rows_placed(self) -> list[int]:
        """How many rows of each task the plan holds."""
        rows = self.plan().batches.ravel()
        tasks = np.searchsorted(np.cumsum(self.sizes), rows, side="right")
        return np.bincount(tasks, minlength=len(self.sizes)).tolist()


def refuse_mixing_uneven_tasks(has_negatives: Mapping[str, bool]) -> None:
    """Rows of one batch must bring the same number of negatives."""
    without = [name for name, has in has_negatives.items() if not has]
    if 0 < len(without) < len(has_negatives):
        raise ValueError(
            f"`task_batching: mixed` needs negatives in all tasks or in none, and {', '.join(without)} have none; set "
            "`num_negatives: 0` or leave these out."
        )
