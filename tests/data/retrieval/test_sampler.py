"""Batches: which tasks and rows they hold, equal on all ranks, independent of workers, resumable."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from torch.utils.data import DataLoader

from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.rows import Example, Row, Task
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler
from tests.data.retrieval.helpers import TASKS, make_task


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


def warnings_of(caplog: pytest.LogCaptureFixture, tasks: list[Task], batch_size: int, **options: Any) -> list[str]:
    """What is said about the plan, which must say it once."""
    caplog.clear()
    batches = sampler(tasks, batch_size, **options)
    for epoch in range(2):
        batches.set_epoch(epoch)
        list(batches)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_share_that_cannot_be_reached_in_mixed_batches_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tasks = [make_task("small", 8), make_task("large", 4000)]
    mixed = {"task_batching": "mixed", "task_weights": "uniform"}
    (told,) = warnings_of(caplog, tasks, 64, **mixed)
    counts = Counter(row < 8 for batch in rows_of(sampler(tasks, 64, **mixed)) for row in batch)
    share = counts[True] / counts.total()
    assert share < 0.2, "the data should show a share that is missed"
    assert told == (
        f"Task `small` fills {counts[True]} rows of an epoch instead of 2,004 (a share of {share:.3f} instead of "
        "0.500): no text stands twice in a batch, and its 8 rows have too few different ones."
    )
    assert warnings_of(caplog, [make_task("small", 200), make_task("large", 4000)], 64, **mixed) == []
    assert warnings_of(caplog, tasks, 64, **mixed, rank=1, world_size=2) == []


@pytest.mark.parametrize("task_weights", ["uniform", "proportional"])
def test_a_task_whose_duplicates_fill_no_batch_is_told(task_weights: str, caplog: pytest.LogCaptureFixture) -> None:
    reviews = Task("reviews", [Row(f"review {n}", ("good" if n % 2 else "bad",)) for n in range(400)])
    (told,) = warnings_of(caplog, [reviews, make_task("large", 400)], 8, task_weights=task_weights)
    assert told == (
        "Task `reviews` fills 0 rows of an epoch instead of 400 (a share of 0.000 instead of 0.500): no text stands "
        "twice in a batch, and its 400 rows have too few different ones."
    )
    # where a few rows are left out, there is nothing to tell
    rows = [Row(f"q{n}", (f"p{n // 2}",)) for n in range(400)]
    assert warnings_of(caplog, [Task("pairs", rows), make_task("large", 400)], 8, task_weights=task_weights) == []


def test_a_weight_that_is_less_than_a_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    weights = {"rare": 0.01, "common": 0.99}
    tasks = [make_task("rare", 40), make_task("common", 160)]
    (told,) = warnings_of(caplog, tasks, 10, task_weights=weights)
    assert told == (
        "Task `rare` fills 0 rows of an epoch instead of 2 (a share of 0.000 instead of 0.010): its share is less "
        "than one of the 20 batches."
    )
    assert warnings_of(caplog, tasks, 10, task_weights={"rare": 0.1, "common": 0.9}) == []
    assert warnings_of(caplog, tasks, 10, task_weights={"rare": 0, "common": 1}) == []
