"""Which rows share a batch: a plan of global batches, the same on every rank and resumable at any batch."""

from __future__ import annotations

import bisect
import itertools
import logging
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .rows import RetrievalDataset, Task
from .weights import share_out, task_shares


logger = logging.getLogger(__name__)

# After this many batches that hold one of its texts, a row is left out of the epoch: planning takes linear time.
MOST_BATCHES_TRIED = 32

# A task may fall short by one batch, or by this part of its rows, before it is worth a warning.
SMALL_SHORTFALL = 0.01

TextsOfRow = Callable[[int], Iterable[str]]


@dataclass(frozen=True)
class BatchingOptions:
    """How rows are put into batches."""

    task_batching: Literal["homogeneous", "mixed"] = "homogeneous"
    """One task per global batch, or tasks mixed row by row."""
    task_weights: str | Mapping[str, float] = "proportional"
    sampling_temperature: float = 1.0
    shuffle_rows: bool = True


@dataclass
class Plan:
    """Batches of row indices, and the number of rows left out of them."""

    batches: list[Sequence[int]]
    rows_left_out: int


def plan_batches(
    sizes: Sequence[int],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    seed: int,
    texts_of: Sequence[TextsOfRow | None],
) -> Plan:
    """Plan one epoch over tasks of these sizes, whose rows are numbered through, task after task.

    With `shares` None every row is used once. Otherwise the epoch has the same length, and the tasks take their
    shares of it; a task that runs out of rows starts again in a new order (tDRO counts epochs in this way).
    `texts_of` has one function per task that gives a row's texts, or None where duplicates do no harm.
    """
    rng = random.Random(seed)
    starts = [0, *itertools.accumulate(sizes)]
    tasks = [range(start, end) for start, end in itertools.pairwise(starts)]
    if options.task_batching == "mixed":
        return _plan_mixed(tasks, batch_size, options, shares, rng, texts_of)
    return _plan_homogeneous(tasks, batch_size, options, shares, rng, texts_of)


def _plan_homogeneous(
    tasks: Sequence[range],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts_of: Sequence[TextsOfRow | None],
) -> Plan:
    """One task per batch: rows are shuffled task after task, cut into batches, and the batches shuffled (LLM2Vec)."""
    batches: list[Sequence[int]] = []
    left_out = 0
    counts: list[int | None] = [None] * len(tasks)  # None: one pass over the task
    if shares is not None:
        used = [len(rows) for rows, share in zip(tasks, shares, strict=True) if share > 0]
        counts = list(share_out(max(1, sum(size // batch_size for size in used)), shares, rng))
    for rows, task_texts, count in zip(tasks, texts_of, counts, strict=True):
        task_batches: list[Sequence[int]] = []
        while count is None or len(task_batches) < count:
            cut = _cut_into_batches(_shuffled(rows, options, rng), batch_size, task_texts)
            task_batches += cut.batches
            left_out += cut.rows_left_out
            if count is None or not cut.batches:
                break
        batches += task_batches if count is None else task_batches[:count]
    rng.shuffle(batches)
    return Plan(batches, left_out)


def _plan_mixed(
    tasks: Sequence[range],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts_of: Sequence[TextsOfRow | None],
) -> Plan:
    """Tasks mixed within a batch, as in tDRO's second stage."""
    total = len(tasks[-1]) + tasks[-1].start
    if shares is None:
        order: Iterable[int] = _shuffled(range(total), options, rng)
    else:
        used = sum(len(rows) for rows, share in zip(tasks, shares, strict=True) if share > 0)
        slots = array("q")
        for task, count in enumerate(share_out(used, shares, rng)):
            slots.extend([task] * count)
        rng.shuffle(slots)
        streams = [_endless(rows, options, rng) for rows in tasks]
        order = (next(streams[task]) for task in slots)
    texts = None
    if any(texts_of):
        starts = [rows.start for rows in tasks]
        texts = _TextsOfAnyTask(starts, texts_of)
    return _cut_into_batches(order, batch_size, texts)


@dataclass(frozen=True)
class _TextsOfAnyTask:
    starts: Sequence[int]
    texts_of: Sequence[TextsOfRow | None]

    def __call__(self, row: int) -> Iterable[str]:
        task = bisect.bisect_right(self.starts, row) - 1
        texts = self.texts_of[task]
        return () if texts is None else texts(row)


def _shuffled(rows: range, options: BatchingOptions, rng: random.Random) -> array[int]:
    order = array("q", rows)
    if options.shuffle_rows:
        rng.shuffle(order)
    return order


def _endless(rows: range, options: BatchingOptions, rng: random.Random) -> Iterator[int]:
    while True:
        yield from _shuffled(rows, options, rng)


def _cut_into_batches(order: Iterable[int], batch_size: int, texts_of: TextsOfRow | None) -> Plan:
    """Cut a sequence into full batches; a row waits for a later batch while one of its texts is in this one."""
    plan = Plan([], 0)
    rows = iter(order)
    waiting: deque[tuple[int, int]] = deque()  # (row, batches tried)
    while True:
        batch = array("q")
        taken: set[str] = set()
        still_waiting: deque[tuple[int, int]] = deque()
        while len(batch) < batch_size:
            if waiting:
                row, tried = waiting.popleft()
            else:
                row, tried = next(rows, -1), 0
                if row < 0:
                    break
            texts = set(texts_of(row)) if texts_of is not None else ()
            if taken.isdisjoint(texts):
                taken.update(texts)
                batch.append(row)
            elif tried + 1 < MOST_BATCHES_TRIED:
                still_waiting.append((row, tried + 1))
            else:
                plan.rows_left_out += 1
        still_waiting.extend(waiting)
        waiting = still_waiting
        if len(batch) < batch_size:
            plan.rows_left_out += len(batch) + len(waiting)
            return plan
        plan.batches.append(batch)


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
    ) -> None:
        """`batch_size` is that of all ranks together."""
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
            yield [(epoch, row) for row in batch[start : start + self.batch_size]]

    def plan(self) -> Plan:
        """The global batches of the current epoch."""
        if self._plan is None or self._plan[0] != self.epoch:
            texts_of = [self._texts_of(task) for task in self.dataset.tasks]
            plan = plan_batches(
                self.sizes, self.global_batch_size, self.options, self.shares, self.seed + self.epoch, texts_of
            )
            if plan.rows_left_out:
                logger.info(
                    "Epoch %d: %d rows are left out of full batches",
                    self.epoch,
                    plan.rows_left_out,
                )
            self._plan = (self.epoch, plan)
        return self._plan[1]

    def _texts_of(self, task: Task) -> TextsOfRow | None:
        """The texts that a row brings into its batch in this epoch."""
        if task.own_passages_only:
            return None
        return lambda row: self.dataset[self.epoch, row].texts

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
        if not self.plan().batches:
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
        rows = np.concatenate([np.asarray(batch) for batch in self.plan().batches])
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
