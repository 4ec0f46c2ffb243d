"""Streamed tasks: rows are read anew in every pass and never held; each rank reads all and keeps its part."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..problems import BadRows
from ..registry import HubOptions
from .entries import Entry, find_entries
from .formats import KNOWN_COLUMNS
from .meetings import MOST_BATCHES_TRIED
from .plan import BatchingOptions
from .reader import (
    NO_NEGATIVES,
    is_beir,
    open_collection,
    own_passages_only,
    refuse_different,
    rows_of_entry,
    task_instruction,
    task_objectives,
)
from .rows import Example, Row, Task, draw_example, negatives_in_batch, row_random
from .sampler import refuse_mixing_uneven_tasks
from .weights import PROPORTIONAL, task_shares


# How many rows of each streamed data set are checked before training starts.
STREAM_PREVIEW = 1000

SOME_NEGATIVES = (
    f"this row has negatives but the first {STREAM_PREVIEW:,} rows of its data set have none, and `num_negatives` is "
    "not 0"
)


@dataclass(frozen=True)
class StreamedTask:
    """A task whose rows are read again in every pass and never held; its size is unknown."""

    name: str
    open_rows: Callable[[], Iterator[Row]]
    instruction: str = ""
    symmetric: bool = False
    own_passages_only: bool = False
    has_negatives: bool = False
    read_corpus: Callable[[], tuple[str, ...]] = tuple
    """Every passage of its BEIR folders, for evaluation."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """As that of a `Task`."""


def stream_tasks(
    dataset_names: Sequence[str] | str,
    dataset_dir: str | dict[str, Any],
    *,
    skip_bad_rows: bool = False,
    num_negatives: int = 0,
    hub: HubOptions | None = None,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[StreamedTask]:
    """The tasks of a recipe as streams; the first thousand rows of each data set are checked at once."""
    hub = hub or HubOptions()
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    entries: dict[str, list[Entry]] = {}
    looked_at: dict[str, list[Row]] = {}
    found = find_entries(dataset_names, dataset_dir)
    settings = task_objectives(found, objectives)
    for entry in found:
        if entry.num_samples is not None:
            raise ValueError(
                f"Data set `{entry.name}`: `num_samples` cannot be drawn from a stream; remove it from the entry, or "
                "set `streaming: false`."
            )
        checked = STREAM_PREVIEW if entry.first_rows is None else min(entry.first_rows, STREAM_PREVIEW)
        rows = list(itertools.islice(rows_of_entry(entry, bad_rows, hub, streaming=True), checked))
        if not rows and not bad_rows.count:
            raise ValueError(f"`dataset`: `{entry.name}` has no rows.")
        entries.setdefault(entry.task, []).append(entry)
        looked_at.setdefault(entry.task, []).extend(rows)
    tasks = []
    for name, rows in looked_at.items():
        count = negatives_in_batch(settings[name], num_negatives)
        has_negatives = count > 0 and any(row.negatives for row in rows)
        for row in rows:
            if has_negatives and not row.negatives and not bad_rows.full:
                bad_rows.add(row.file, row.line, NO_NEGATIVES)
        reader = _StreamReader(tuple(entries[name]), skip_bad_rows, hub, has_negatives if count > 0 else None)
        tasks.append(_streamed_task(reader, settings[name]))
    bad_rows.finish()
    return tasks


def _streamed_task(reader: _StreamReader, objective: Mapping[str, Any]) -> StreamedTask:
    first, name = reader.entries[0], reader.entries[0].task
    refuse_different(name, "symmetric", [entry.symmetric for entry in reader.entries])
    refuse_different(name, "own_passages_only", [own_passages_only(entry) for entry in reader.entries])
    return StreamedTask(
        name,
        reader.open_rows,
        task_instruction(first),
        first.symmetric,
        objective.get("own_passages_only", own_passages_only(first)),
        bool(reader.has_negatives),
        reader.read_corpus,
        objective,
    )


@dataclass(frozen=True)
class _StreamReader:
    """Opens a streamed task."""

    entries: tuple[Entry, ...]
    skip_bad_rows: bool
    hub: HubOptions
    has_negatives: bool | None
    """Whether every row has negatives or none has; None where none are drawn."""

    def open_rows(self) -> Iterator[Row]:
        """The rows of all data sets, one after another; bad rows stop the run where they stand, or are skipped."""
        for entry in self.entries:
            bad_rows = BadRows(self.skip_bad_rows, KNOWN_COLUMNS)
            rows = rows_of_entry(entry, bad_rows, self.hub, streaming=True)
            for row in itertools.islice(rows, entry.first_rows):
                is_even = self.has_negatives is None or bool(row.negatives) == self.has_negatives
                if not is_even:
                    bad_rows.add(row.file, row.line, SOME_NEGATIVES if row.negatives else NO_NEGATIVES)
                if not self.skip_bad_rows:
                    bad_rows.finish()
                if not is_even:
                    continue
                if row.instruction is None and len(self.entries) > 1:
                    row = dataclasses.replace(row, instruction=entry.instructions[0])
                yield row
            bad_rows.finish()

    def read_corpus(self) -> tuple[str, ...]:
        """The passages of BEIR folders."""
        texts: list[str] = []
        for entry in filter(is_beir, self.entries):
            bad_rows = BadRows(self.skip_bad_rows, KNOWN_COLUMNS)
            texts += (passage.text for passage in open_collection(entry, bad_rows).passages())
            bad_rows.finish()
        return tuple(texts)


class StreamedBatches:
    """Iterates over one rank's part of the global batches of one epoch, which ends with the first exhausted task.

    Rows are shuffled in a buffer of `buffer_size` rows a task. Every rank reads and draws the same, so ranks need not
    talk to each other; an epoch is resumed by skipping batches.
    """

    def __init__(
        self,
        tasks: Sequence[StreamedTask],
        batch_size: int,
        options: BatchingOptions | None = None,
        num_negatives: int = 0,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 10_000,
    ) -> None:
        """`batch_size` is that of all ranks together."""
        self.options = options or BatchingOptions()
        if batch_size % world_size:
            raise ValueError(f"The global batch of {batch_size} rows cannot be split over {world_size} processes.")
        sized = self.options.task_weights in (PROPORTIONAL, "temperature")
        if sized and len(tasks) > 1:
            raise ValueError(
                f"`dataset_weights: {self.options.task_weights}` needs the sizes of the tasks, which a stream does "
                "not know; use `uniform` or give weights."
            )
        counts = [negatives_in_batch(task.objective, num_negatives) for task in tasks]
        if self.options.task_batching == "mixed" and any(counts):
            refuse_mixing_uneven_tasks({task.name: task.has_negatives for task in tasks})
        self.tasks = list(tasks)
        self.batch_size = batch_size
        self.counts = counts
        """Negatives of a row, for each task."""
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
                if example.own_passages_only:
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
            yield draw_example(task, number, row, index, self.counts[number], row_rng)


class StreamedBatchSampler:
    """The batches of a whole run: when a task is exhausted, the next pass over the streams begins.

    It yields the examples themselves, so that the Trainer's process reads each stream once and data workers tokenize.
    A run is resumed by reading, without tokenizing, what it has seen.
    """

    def __init__(self, batches: StreamedBatches, count: int) -> None:
        self.batches = batches
        self.count = count
        self.batch_size = batches.batch_size // batches.world_size
        self.drop_last = True

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Ignored: for the Trainer, a run measured in steps is one epoch."""

    def __iter__(self) -> Iterator[list[Example]]:
        for number in itertools.count():
            self.batches.set_epoch(number)
            batch = None
            for batch in self.batches:
                yield batch
            if batch is None:
                raise ValueError(
                    f"`per_device_train_batch_size`: a task ends before it fills a batch of {self.batches.batch_size} "
                    "rows without duplicate texts; lower it."
                )


def _draw(bounds: Sequence[float], rng: random.Random) -> int:
    """A task drawn by its share; `bounds` are the running sums."""
    return min(bisect.bisect_right(bounds, rng.random() * bounds[-1]), len(bounds) - 1)
