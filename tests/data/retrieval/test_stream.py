"""Streamed tasks: checked like held ones, and batched the same on all ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.rows import (
    Example,
    Row,
    Task,
)
from llamafactory_embed.data.retrieval.stream import StreamedBatches, StreamedBatchSampler, StreamedTask, stream_tasks
from tests.data.retrieval.helpers import TASKS, make_task


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


def write_rows(folder: Path, **files: list[dict[str, Any]]) -> str:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entries = {name: {"file_name": f"{name}.jsonl", "formatting": "retrieval"} for name in files}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return str(folder)


def triples(count: int, without: Container[int]) -> list[dict[str, Any]]:
    return [
        {"query": f"q {n}", "positive": f"p {n}", "negative": [] if n in without else [f"n {n}"]} for n in range(count)
    ]


def test_a_row_without_negatives_among_others_is_told_before_the_run(tmp_path: Path) -> None:
    folder = write_rows(tmp_path, rows=triples(40, without={3}))
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: this row has no negatives but others of its task have"):
        stream_tasks("rows", folder, num_negatives=1)
    assert len(list(stream_tasks("rows", folder, num_negatives=0)[0].open_rows())) == 40
    (task,) = stream_tasks("rows", folder, num_negatives=1, skip_bad_rows=True)
    batches = list(StreamedBatches([task], 8, num_negatives=1))
    assert len(batches) == 4
    assert all(len(example.negatives) == 1 for batch in batches for example in batch)


@pytest.mark.parametrize(
    ("without", "problem"),
    [({1200}, "this row has no negatives but others"), (range(1200), r"this row has negatives but the first 1,000")],
)
def test_an_uneven_row_after_the_preview_is_named_when_it_comes(
    without: Container[int], problem: str, tmp_path: Path
) -> None:
    folder = write_rows(tmp_path, rows=triples(1300, without))
    (task,) = stream_tasks("rows", folder, num_negatives=1)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1201: {problem}"):
        list(task.open_rows())
    (task,) = stream_tasks("rows", folder, num_negatives=1, skip_bad_rows=True)
    assert len({bool(row.negatives) for row in task.open_rows()}) == 1


def test_streams_with_and_without_negatives_are_not_mixed(tmp_path: Path) -> None:
    folder = write_rows(tmp_path, some=triples(20, without=()), none=triples(20, without=range(20)))
    tasks = stream_tasks("some,none", folder, num_negatives=1)
    options = BatchingOptions(task_batching="mixed", task_weights="uniform")
    with pytest.raises(ValueError, match="needs negatives in all tasks or in none, and none have none"):
        StreamedBatches(tasks, 4, options, num_negatives=1)
    assert list(StreamedBatches(tasks, 4, options, num_negatives=0))


def test_a_run_reads_a_stream_again_when_it_is_exhausted() -> None:
    sampler = StreamedBatchSampler(StreamedBatches([stream(make_task("t", 8))], 4, buffer_size=4), 5)
    batches = list(itertools.islice(sampler, 5))
    assert [len(batch) for batch in batches] == [4] * 5 == [sampler.batch_size] * len(sampler)
    assert sorted(example.row_index for batch in batches[:2] for example in batch) == list(range(8))
    assert sorted(example.row_index for batch in batches[2:4] for example in batch) == list(range(8))
    with pytest.raises(ValueError, match="a task ends before it fills a batch of 9 rows"):
        next(iter(StreamedBatchSampler(StreamedBatches([stream(make_task("t", 8))], 9), 1)))


def test_samples_cannot_be_drawn_from_a_stream(tmp_path: Path) -> None:
    folder = write_rows(tmp_path, rows=triples(4, without=()))
    entry = {"rows": {"file_name": "rows.jsonl", "formatting": "retrieval", "num_samples": 2}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match="`num_samples` cannot be drawn from a stream; remove it"):
        stream_tasks("rows", folder)
