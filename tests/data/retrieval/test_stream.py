"""Streamed tasks: checked like held ones, and batched the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamafactory_embed.data.retrieval.rows import (
    Example,
    Row,
    Task,
)
from llamafactory_embed.data.retrieval.sampler import BatchingOptions
from llamafactory_embed.data.retrieval.stream import StreamedBatches, StreamedTask
from tests.data.retrieval.helpers import TASKS


def stream(task: Task) -> StreamedTask:
    def open_rows() -> Iterator[Row]:
        return iter(task.rows)

    return StreamedTask(task.name, open_rows, task.instruction, task.symmetric)


def test_streamed_batches_are_the_same_on_all_ranks_and_hold_one_task() -> None:
    tasks = [stream(task) for task in TASKS]
    options = BatchingOptions(task_weights="uniform")

    def batches(rank: int = 0, world_size: int = 1, epoch: int = 0) -> list[list[Example]]:
        reader = StreamedBatches(tasks, 6, options, 1, rank=rank, world_size=world_size, buffer_size=8)
        reader.set_epoch(epoch)
        return list(reader)

    alone = batches()
    assert len(alone) >= 3
    assert all(len({example.task for example in batch}) == 1 for batch in alone)
    assert len({example.task for batch in alone for example in batch}) > 1
    joined = [first + second for first, second in zip(batches(0, 2), batches(1, 2), strict=True)]
    assert joined == alone
    assert [example.row_index for example in batches(epoch=1)[0]] != [example.row_index for example in alone[0]]
    queries = [example.query for batch in alone for example in batch]
    assert len(queries) == len(set(queries))


def test_a_single_stream_is_read_to_its_last_full_batch_without_duplicates() -> None:
    rows = [Row(f"q{n}", (f"p{n // 2}",)) for n in range(80)]
    reader = StreamedBatches([stream(Task("t", rows))], 8, buffer_size=20)
    found = list(reader)
    assert all(len({example.positive for example in batch}) == 8 for batch in found)
    assert len(found) >= 8
    assert [example.query for batch in found for example in batch] != [row.query for row in rows][: 8 * len(found)]


def test_streams_cannot_be_weighted_by_their_size() -> None:
    with pytest.raises(ValueError, match="`dataset_weights: proportional` needs the sizes of the tasks"):
        StreamedBatches([stream(task) for task in TASKS], 6)
