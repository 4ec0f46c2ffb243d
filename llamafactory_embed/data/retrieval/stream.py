"""Batches from streamed tasks, whose size is not known: each rank reads the stream and keeps its part."""

from __future__ import annotations

import bisect
import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence

from .reader import StreamedTask
from .rows import Example, Row, Task, draw_example, row_random
from .sampler import MOST_BATCHES_TRIED, SamplingOptions
from .weights import PROPORTIONAL, task_shares


class StreamedBatches:
    """Iterates over one rank's part of the global batches of one epoch, which ends with the first exhausted task.

    Rows are shuffled in a buffer of `buffer_size` rows a task. Every rank reads and draws the same, so ranks need not
    talk to each other; an epoch is resumed by skipping batches.
    """

    def __init__(
        self,
        tasks: Sequence[StreamedTask],
        batch_size: int,
        options: SamplingOptions | None = None,
        num_negatives: int = 0,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 10_000,
    ) -> None:
        """`batch_size` is that of all ranks together."""
        self.options = options or SamplingOptions()
        if batch_size % world_size:
            raise ValueError(f"The global batch of {batch_size} rows cannot be split over {world_size} processes.")
        sized = self.options.task_weights in (PROPORTIONAL, "temperature")
        if sized and len(tasks) > 1:
            raise ValueError(
                f"`dataset_weights: {self.options.task_weights}` needs the sizes of the tasks, which a stream does "
                "not tell; use `uniform` or give weights."
            )
        self.tasks = list(tasks)
        self.batch_size = batch_size
        self.num_negatives = num_negatives
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.buffer_size = buffer_size
        self.epoch = 0
        names = [task.name for task in self.tasks]
        weights = "uniform" if sized else self.options.task_weights
        self.shares = task_shares(weights, names, [0] * len(names)) or [1.0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches follow; called by the trainer."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Example]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        streams = [self._examples(number, random.Random(rng.random())) for number in range(len(self.tasks))]
        waiting: list[deque[tuple[Example, int]]] = [deque() for _ in streams]  # (example, batches tried)
        bounds = list(itertools.accumulate(self.shares))
        while True:
            batch: list[Example] = []
            taken: set[str] = set()
            passed_over: list[deque[tuple[Example, int]]] = [deque() for _ in streams]
            drawn = _draw(bounds, rng)
            while len(batch) < self.batch_size:
                if self.options.task_batching == "mixed":
                    drawn = _draw(bounds, rng)
                if waiting[drawn]:
                    example, tried = waiting[drawn].popleft()
                else:
                    following = next(streams[drawn], None)
                    if following is None:
                        return
                    example, tried = following, 0
                if not self.options.avoid_duplicates or example.own_passages_only:
                    batch.append(example)
                elif taken.isdisjoint(example.texts):
                    taken.update(example.texts)
                    batch.append(example)
                elif tried + 1 < MOST_BATCHES_TRIED:
                    passed_over[drawn].append((example, tried + 1))
            waiting = [passed + rest for passed, rest in zip(passed_over, waiting, strict=True)]
            part = self.batch_size // self.world_size
            yield batch[self.rank * part : (self.rank + 1) * part]

    def _examples(self, number: int, rng: random.Random) -> Iterator[Example]:
        """A task's rows, shuffled in a buffer, as examples."""
        streamed = self.tasks[number]
        task = Task(
            streamed.name, (), streamed.instruction, streamed.symmetric, own_passages_only=streamed.own_passages_only
        )
        buffer: list[tuple[int, Row]] = []
        rows = iter(enumerate(streamed.open_rows()))
        while True:
            buffer.extend(itertools.islice(rows, self.buffer_size - len(buffer)))
            if not buffer:
                return
            place = rng.randrange(len(buffer)) if self.options.shuffle_rows else 0
            index, row = buffer.pop(place)
            row_rng = row_random(self.seed, self.epoch, index)
            yield draw_example(task, number, row, index, self.num_negatives, row_rng)


def _draw(bounds: Sequence[float], rng: random.Random) -> int:
    """A task drawn by its share; `bounds` are the running sums."""
    return min(bisect.bisect_right(bounds, rng.random() * bounds[-1]), len(bounds) - 1)
