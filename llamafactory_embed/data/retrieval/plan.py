"""The plan of an epoch: rows shuffled, tasks by their shares, and no text twice in a batch."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .common_texts import CommonTexts
from .meetings import without_meetings
from .weights import share_out


@dataclass(frozen=True)
class BatchingOptions:
    """How rows are put into batches."""

    task_batching: Literal["homogeneous", "mixed"] = "homogeneous"
    """One task per global batch, or tasks mixed row by row."""
    task_weights: str | Mapping[str, float] = "proportional"
    sampling_temperature: float = 1.0
    shuffle_rows: bool = True


@dataclass(frozen=True)
class Plan:
    """Batches of row indices [batches, rows of a batch], and the number of rows left out of them."""

    batches: np.ndarray
    rows_left_out: int


def plan_batches(
    sizes: Sequence[int],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    seed: int,
    texts: Sequence[CommonTexts | None],
) -> Plan:
    """Plan one epoch over tasks of these sizes, whose rows are numbered through, task after task.

    With `shares` None every row is used once. Otherwise the epoch has the same length, and the tasks take their
    shares of it; a task that runs out of rows starts again in a new order (tDRO counts epochs in this way).
    `texts` are for each task those that its rows have in common with others, or None where duplicates do no harm. In
    mixed batches the texts of all tasks are told apart by the first that there are.
    """
    rng = random.Random(seed)
    starts = [0, *itertools.accumulate(sizes)]
    tasks = [range(start, end) for start, end in itertools.pairwise(starts)]
    if options.task_batching == "mixed":
        of_any_task = next((each for each in texts if each is not None), None)
        return _plan_mixed(tasks, batch_size, options, shares, rng, of_any_task)
    return _plan_homogeneous(tasks, batch_size, options, shares, rng, texts)


def _plan_homogeneous(
    tasks: Sequence[range],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts: Sequence[CommonTexts | None],
) -> Plan:
    """One task per batch: rows are shuffled task after task, cut into batches, and the batches shuffled (LLM2Vec)."""
    parts = [np.zeros((0, batch_size), np.int64)]
    left_out = 0
    counts: list[int | None] = [None] * len(tasks)  # None: one pass over the task
    if shares is not None:
        used = [len(rows) for rows, share in zip(tasks, shares, strict=True) if share > 0]
        counts = list(share_out(max(1, sum(size // batch_size for size in used)), shares, rng))
    for rows, of_task, count in zip(tasks, texts, counts, strict=True):
        planned = 0
        while count is None or planned < count:
            cut = cut_into_batches(_shuffled(rows, options, rng), batch_size, of_task)
            left_out += cut.rows_left_out
            parts.append(cut.batches if count is None else cut.batches[: count - planned])
            planned += len(cut.batches)
            if count is None or not len(cut.batches):
                break
    batches = np.concatenate(parts)
    order = array("q", range(len(batches)))
    rng.shuffle(order)
    return Plan(batches[order], left_out)


def _plan_mixed(
    tasks: Sequence[range],
    batch_size: int,
    options: BatchingOptions,
    shares: Sequence[float] | None,
    rng: random.Random,
    texts: CommonTexts | None,
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
    return cut_into_batches(order, batch_size, texts)


def _shuffled(rows: range, options: BatchingOptions, rng: random.Random) -> array[int]:
    order = array("q", rows)
    if options.shuffle_rows:
        rng.shuffle(order)
    return order


def _endless(rows: range, options: BatchingOptions, rng: random.Random) -> Iterator[int]:
    while True:
        yield from _shuffled(rows, options, rng)


def cut_into_batches(order: Iterable[int], batch_size: int, texts: CommonTexts | None) -> Plan:
    """Cut a sequence into full batches; a row waits for a later batch while one of its texts is in this one."""
    rows = np.asarray(order if isinstance(order, array) else array("q", order), np.int64)
    batches = rows[: len(rows) // batch_size * batch_size].reshape(-1, batch_size)
    if texts is not None:
        batches = without_meetings(rows, np.empty_like(batches), texts)
    return Plan(batches, len(rows) - batches.size)
