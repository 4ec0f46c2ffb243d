"""Batches: which tasks and rows they hold, equal on all ranks, independent of workers, resumable."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from llamafactory_embed.data.retrieval.rows import (
    Example,
    RetrievalDataset,
    Row,
    Task,
    choose_negatives,
    draw_example,
    row_random,
)
from llamafactory_embed.data.retrieval.sampler import BatchingOptions, GlobalBatchSampler
from llamafactory_embed.data.retrieval.stream import StreamedBatches, StreamedTask
from llamafactory_embed.data.retrieval.weights import share_out, task_shares


def make_task(name: str, size: int, negatives: int = 3, **settings: Any) -> Task:
    """A task of which no text occurs twice."""
    rows = [
        Row(f"{name} q{n}", (f"{name} p{n}", f"{name} r{n}"), tuple(f"{name} n{n}.{k}" for k in range(negatives)))
        for n in range(size)
    ]
    return Task(name, rows, **settings)


TASKS = [make_task("big", 90), make_task("middle", 40), make_task("small", 21)]


def sampler(tasks: list[Task], batch_size: int, seed: int = 42, num_negatives: int = 0, **options: Any) -> Any:
    ranks = {key: options.pop(key) for key in ("rank", "world_size") if key in options}
    dataset = RetrievalDataset(tasks, num_negatives, seed)
    return GlobalBatchSampler(dataset, batch_size, BatchingOptions(**options), seed, **ranks)


def rows_of(batches: Any) -> list[list[int]]:
    return [[row for _, row in batch] for batch in batches]


def tasks_of(batches: GlobalBatchSampler) -> list[set[str]]:
    return [{batches.dataset[key].task for key in batch} for batch in batches]


def test_homogeneous_batches_hold_one_task_and_every_row_once() -> None:
    batches = sampler(TASKS, 10)
    assert all(len(names) == 1 for names in tasks_of(batches))
    rows = list(itertools.chain(*rows_of(batches)))
    assert len(rows) == len(set(rows))
    assert Counter(next(iter(names)) for names in tasks_of(batches)) == {"big": 9, "middle": 4, "small": 2}
    assert len(batches) == len(rows_of(batches)) == 15


def test_mixed_batches_hold_several_tasks() -> None:
    batches = sampler(TASKS, 10, task_batching="mixed")
    assert sum(len(names) > 1 for names in tasks_of(batches)) > len(batches) // 2
    rows = list(itertools.chain(*rows_of(batches)))
    assert len(rows) == len(set(rows)) == len(batches) * 10 == 150


@pytest.mark.parametrize("task_batching", ["homogeneous", "mixed"])
def test_ranks_together_are_one_process(task_batching: str) -> None:
    alone = sampler(TASKS, 12, task_batching=task_batching)
    for world_size in (2, 3):
        ranks = [
            sampler(TASKS, 12, task_batching=task_batching, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for epoch in (0, 1):
            for one in (alone, *ranks):
                one.set_epoch(epoch)
            joined = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
            assert joined == list(alone)
            assert len(ranks[0]) == len(alone) == len(joined)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    batches = sampler(TASKS, 10)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert rows_of(first) != rows_of(second)
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    batches.set_epoch(0)
    assert list(batches) == first == list(sampler(TASKS, 10))
    assert rows_of(sampler(TASKS, 10, seed=43)) != rows_of(first)


def collate(examples: list[Example]) -> list[Example]:
    return examples


def test_workers_change_nothing_and_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    batches = sampler(TASKS, 10, num_negatives=2)
    batches.set_epoch(1)

    def load(workers: int) -> list[list[Example]]:
        loader = DataLoader(
            batches.dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
        )
        return list(loader)

    everything = load(0)
    assert load(2) == everything
    from accelerate.data_loader import SkipBatchSampler

    rest = SkipBatchSampler(batches, skip_batches=4)
    assert [[batches.dataset[key] for key in batch] for batch in rest] == everything[4:]


def test_examples_are_drawn_anew_in_each_epoch() -> None:
    dataset = RetrievalDataset(TASKS, num_negatives=2)
    first = [dataset[0, row] for row in range(len(dataset))]
    second = [dataset[1, row] for row in range(len(dataset))]
    assert [dataset[0, row] for row in reversed(range(len(dataset)))] == first[::-1], "the order of drawing is free"
    changed = sum((a.positive, a.negatives) != (b.positive, b.negatives) for a, b in zip(first, second, strict=True))
    assert changed > len(dataset) / 2


def test_no_text_occurs_twice_in_a_batch() -> None:
    rng = random.Random(0)
    words = [f"word {n}" for n in range(60)]
    rows = [Row(f"gloss {n}", (rng.choice(words),), tuple(rng.sample(words, 3))) for n in range(400)]
    rows += [Row(f"gloss {n % 50}", (f"other {n}",), ("word 1", "word 2")) for n in range(30)]
    for task_batching in ("homogeneous", "mixed"):
        batches = sampler([Task("words", rows)], 12, num_negatives=1, task_batching=task_batching)
        seen = []
        for batch in batches:
            texts = [text for key in batch for text in set(batches.dataset[key].texts)]
            assert len(texts) == len(set(texts))
            seen += batch
        assert len(seen) == len(set(seen))
        assert len(seen) >= 0.9 * len(rows), "most rows find a place"
    careless = sampler([Task("words", rows, own_passages_only=True)], 12, num_negatives=1)
    repeated = [[text for key in batch for text in careless.dataset[key].texts] for batch in careless]
    assert any(len(texts) > len(set(texts)) for texts in repeated), "the rows should be able to show the difference"


def test_few_distinct_texts_are_planned_in_linear_time() -> None:
    rows = [Row(f"review {n}", ("good" if n % 2 else "bad",)) for n in range(4000)]
    with pytest.raises(ValueError, match="no batch of 8 rows without duplicate texts"):
        sampler([Task("reviews", rows)], 8)
    # a task whose queries see their own passages only has nothing to fear from duplicates
    assert len(sampler([Task("reviews", rows, own_passages_only=True)], 8)) == 500


def test_uniform_weights_give_every_task_as_many_batches() -> None:
    batches = sampler(TASKS, 5, task_weights="uniform")
    counts = Counter(next(iter(names)) for names in tasks_of(batches))
    assert sum(counts.values()) == len(sampler(TASKS, 5))
    assert max(counts.values()) - min(counts.values()) <= 1
    small = [row for batch in rows_of(batches) for row in batch if row >= 130]
    assert len(small) > len(set(small)), "a small task starts again"
    assert Counter(small).most_common()[0][1] <= len(small) // 20 + 1, "each row once before any row again"


def test_mixed_weights_share_out_the_rows() -> None:
    batches = sampler(TASKS, 10, task_batching="mixed", task_weights={"big": 1, "small": 3})
    counts = Counter(batches.dataset[key].task for batch in batches for key in batch)
    assert set(counts) == {"big", "small"}
    assert counts["small"] / sum(counts.values()) == pytest.approx(0.75, abs=0.05)


def test_temperature_lies_between_proportional_and_uniform() -> None:
    names, sizes = ["a", "b"], [900, 100]
    assert task_shares("temperature", names, sizes, 1.0) == pytest.approx([0.9, 0.1])
    assert task_shares("temperature", names, sizes, 2.0) == pytest.approx([0.75, 0.25])
    assert task_shares("temperature", names, sizes, 1e9) == pytest.approx([0.5, 0.5])
    assert task_shares("proportional", names, sizes) is None


def test_shares_are_whole_numbers_by_largest_remainder() -> None:
    assert share_out(10, [0.46, 0.44, 0.1], random.Random(0)) == [5, 4, 1]
    assert share_out(2, [0.5, 0.0, 0.5], random.Random(0)) == [1, 0, 1]
    lucky = {tuple(share_out(1, [0.25] * 4, random.Random(seed))) for seed in range(40)}
    assert len(lucky) == 4, "ties are drawn and do not always favour the first task"


def test_weights_files_of_tdro_name_their_tasks(tmp_path: Path) -> None:
    path = tmp_path / "top70_weights.json"
    content = {"domain_ids": {"b": 0, "c": 1}, "domain_weights": {"b": 0.5, "c": 0.5}, "size": {}, "epoch": {}}
    path.write_text(json.dumps(content))
    assert task_shares(str(path), ["a", "b", "c"], [1, 1, 1]) == [0.0, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"does not have: c, and these tasks of the recipe have no weight: C\."):
        task_shares(str(path), ["b", "C"], [1, 1])
    path.write_text('{"b": 2, "c": 6}')
    assert task_shares(str(path), ["b", "c"], [1, 1]) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"b": -1, "c": 1}', "the weight of `b` must be a number of at least 0, not -1"),
        ('{"b": 0, "c": 0}', "gives no task a weight above 0"),
        ("[1]", "must map task names to weights"),
        ('{"b": 1,\n oops}', r"w\.json:2 is not JSON"),
    ],
)
def test_bad_weights_files(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        task_shares(str(tmp_path / "w.json"), ["b", "c"], [1, 1])
    with pytest.raises(ValueError, match="there is no file `even`"):
        task_shares("even", ["b", "c"], [1, 1])


def test_what_would_train_on_nothing_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="task `small` has 21 rows, fewer than the global batch of 30"):
        sampler(TASKS, 30, task_weights="uniform")
    assert len(sampler(TASKS, 30)) == 4
    assert "task `small` has 21 rows" in caplog.text
    with pytest.raises(ValueError, match="cannot be split over 4 processes"):
        sampler(TASKS, 30, world_size=4)
    pairs = make_task("pairs", 50, negatives=0)
    with pytest.raises(ValueError, match="`task_batching: mixed` needs negatives in all tasks or in none, and pairs"):
        sampler([*TASKS, pairs], 10, num_negatives=1, task_batching="mixed")
    assert len(sampler([*TASKS, pairs], 10, num_negatives=1)) == 20


def test_negatives_are_leading_then_sampled_and_each_once_before_any_twice() -> None:
    row = Row("q", ("p",), tuple("abcdef"), leading_negatives=2)
    for seed in range(30):
        rng = random.Random(seed)
        assert choose_negatives(row, 1, rng) == (0,)
        three = choose_negatives(row, 3, rng)
        assert three[:2] == (0, 1)
        assert three[2] in (2, 3, 4, 5)
        eight = choose_negatives(row, 8, rng)
        assert set(eight[:6]) == set(range(6))
        assert len(eight) == 8
        assert set(eight[6:]) <= {2, 3, 4, 5}
    only_leading = Row("q", ("p",), ("a", "b"), leading_negatives=2)
    assert sorted(choose_negatives(only_leading, 3, random.Random(0))[:2]) == [0, 1]
    assert choose_negatives(row, 0, rng) == choose_negatives(Row("q", ("p",)), 4, rng) == ()


def test_teacher_scores_follow_the_texts_drawn() -> None:
    positives, negatives = ("p0", "p1"), ("n0", "n1", "n2")
    row = Row("q", positives, negatives, scores=(10.0, 11.0, 20.0, 21.0, 22.0))
    score_of = dict(zip(positives + negatives, (10.0, 11.0, 20.0, 21.0, 22.0), strict=True))
    drawn = set()
    for seed in range(20):
        example = draw_example(Task("t", [row]), 0, row, 0, 2, random.Random(seed))
        assert example.scores == tuple(score_of[text] for text in (example.positive, *example.negatives))
        drawn.add(example.texts)
    assert len(drawn) > 4


def test_instructions_reach_the_passages_of_symmetric_tasks_only() -> None:
    rows = [Row("q", ("p",)), Row("q", ("p",), instruction="own"), Row("q", ("p",), instruction="")]
    for symmetric in (False, True):
        task = Task("t", rows, instruction="task's", symmetric=symmetric)
        dataset = RetrievalDataset([task])
        assert [dataset[row].query_instruction for row in range(3)] == ["task's", "own", ""]
        expected = ["task's", "own", ""] if symmetric else ["", "", ""]
        assert [dataset[row].passage_instruction for row in range(3)] == expected


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


def test_row_randomness_depends_on_seed_epoch_and_row() -> None:
    draws = {row_random(*key).random() for key in itertools.product(range(3), range(3), range(3))}
    assert len(draws) == 27
