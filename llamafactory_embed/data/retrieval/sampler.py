"""Which rows share a batch: a plan of global batches, the same on every rank and resumable at any batch."""

from __future__ import annotations

import bisect
import itertools
import logging
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .rows import RetrievalDataset, Task
from .weights import share_out, task_shares


logger = logging.getLogger(__name__)

# A row that found its texts taken in so many batches is left out of the epoch; this keeps planning linear in time.
MOST_BATCHES_TRIED = 32

TextsOfRow = Callable[[int], Iterable[str]]


@dataclass(frozen=True)
class SamplingOptions:
    """How rows are put into batches."""

    task_batching: Literal["homogeneous", "mixed"] = "homogeneous"
    """One task per global batch, or tasks mixed row by row."""
    task_weights: str | Mapping[str, float] = "proportional"
    sampling_temperature: float = 1.0
    shuffle_rows: bool = True
    avoid_duplicates: bool = True
    """Keep a text from occurring twice in a batch, where it would be its own negative."""
    drop_incomplete: bool = True


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch, each a sequence of row indices, and how many rows found no place."""

    batches: list[Sequence[int]]
    rows_left_out: int


@dataclass
class _Cut:
    """Batches cut from a sequence of rows, with the rows that were left over."""

    batches: list[Sequence[int]] = field(default_factory=list)
    left_out: int = 0


def plan_batches(
    sizes: Sequence[int],
    batch_size: int,
    options: SamplingOptions,
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
    options: SamplingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts_of: Sequence[TextsOfRow | None],
) -> Plan:
    """One task per batch: rows are shuffled task after task, cut into batches, and the batches shuffled (LLM2Vec)."""
    batches: list[Sequence[int]] = []
    left_out = 0
    wanted: list[int | None] = [None] * len(tasks)  # None: one pass over the task
    if shares is not None:
        used = [len(rows) for rows, share in zip(tasks, shares, strict=True) if share > 0]
        wanted = list(share_out(max(1, sum(size // batch_size for size in used)), shares, rng))
    for rows, task_texts, count in zip(tasks, texts_of, wanted, strict=True):
        task_batches: list[Sequence[int]] = []
        while count is None or len(task_batches) < count:
            cut = _cut_into_batches(_shuffled(rows, options, rng), batch_size, task_texts, options.drop_incomplete)
            task_batches += cut.batches
            left_out += cut.left_out
            if count is None or not cut.batches:
                break
        batches += task_batches if count is None else task_batches[:count]
    rng.shuffle(batches)
    return Plan(batches, left_out)


def _plan_mixed(
    tasks: Sequence[range],
    batch_size: int,
    options: SamplingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts_of: Sequence[TextsOfRow | None],
) -> Plan:
    """Tasks mixed within a batch, as tDRO's second stage needs it."""
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
    cut = _cut_into_batches(order, batch_size, texts, options.drop_incomplete)
    return Plan(cut.batches, cut.left_out)


@dataclass(frozen=True)
class _TextsOfAnyTask:
    starts: Sequence[int]
    texts_of: Sequence[TextsOfRow | None]

    def __call__(self, row: int) -> Iterable[str]:
        task = bisect.bisect_right(self.starts, row) - 1
        texts = self.texts_of[task]
        return () if texts is None else texts(row)


def _shuffled(rows: range, options: SamplingOptions, rng: random.Random) -> array[int]:
    order = array("q", rows)
    if options.shuffle_rows:
        rng.shuffle(order)
    return order


def _endless(rows: range, options: SamplingOptions, rng: random.Random) -> Iterator[int]:
    while True:
        yield from _shuffled(rows, options, rng)


def _cut_into_batches(
    order: Iterable[int], batch_size: int, texts_of: TextsOfRow | None, drop_incomplete: bool
) -> _Cut:
    """Cut a sequence into batches; a row of which a text is in the batch already waits for a later one."""
    cut = _Cut()
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
                cut.left_out += 1
        still_waiting.extend(waiting)
        waiting = still_waiting
        if len(batch) == batch_size or (batch and not drop_incomplete):
            cut.batches.append(batch)
        else:
            cut.left_out += len(batch) + len(waiting)
            return cut


class GlobalBatchSampler:
    """Batches for one rank: its part of each global batch, so that n ranks train on what one process would.

    Yields lists of `(epoch, row_index)` for `RetrievalDataset`. The plan depends on nothing but the data, the
    options, the seed and the epoch; skipping the first n batches of an epoch therefore resumes it exactly.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        batch_size: int,
        options: SamplingOptions | None = None,
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
        self.options = options or SamplingOptions()
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
        return sum(len(batch) >= self.world_size for batch in self.plan().batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self.plan().batches:
            part = len(batch) // self.world_size  # only the last batch of a task may be shorter, see `drop_incomplete`
            if part:
                yield [(epoch, row) for row in batch[self.rank * part : (self.rank + 1) * part]]

    def plan(self) -> Plan:
        """The global batches of the current epoch."""
        if self._plan is None or self._plan[0] != self.epoch:
            texts_of = [self._texts_of(task) for task in self.dataset.tasks]
            plan = plan_batches(
                self.sizes, self.global_batch_size, self.options, self.shares, self.seed + self.epoch, texts_of
            )
            if self.options.avoid_duplicates and plan.rows_left_out:
                logger.info("Epoch %d: %d rows found no place in a full batch", self.epoch, plan.rows_left_out)
            self._plan = (self.epoch, plan)
        return self._plan[1]

    def _texts_of(self, task: Task) -> TextsOfRow | None:
        """The texts that a row brings into its batch in this epoch."""
        if not self.options.avoid_duplicates or task.own_passages_only:
            return None
        return lambda row: self.dataset[self.epoch, row].texts

    def _check(self) -> None:
        """Refuse what would train on nothing, or on less than the recipe says."""
        if self.options.task_batching == "mixed" and self.dataset.num_negatives:
            without = [task.name for task in self.dataset.tasks if not task.rows[0].negatives]
            if 0 < len(without) < len(self.dataset.tasks):
                raise ValueError(
                    f"`task_batching: mixed` needs negatives in all tasks or in none, and {', '.join(without)} have "
                    "none; set `num_negatives: 0` or leave these out."
                )
        if self.options.task_batching == "homogeneous" and self.options.drop_incomplete:
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
