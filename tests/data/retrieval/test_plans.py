"""The batches of an epoch, number by number: many mixtures, seeds, ranks and epochs against what was recorded when
every row was drawn to plan it.

`python -m tests.data.retrieval.test_plans` writes the record anew: for a change that is meant to change batches.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.retrieval import meetings, row_table
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.rows import Row, Task
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler
from llamafactory_embed.files import digest


RECORD = Path(__file__).with_name("plans.json")
CASES = 64
EPOCHS = 2


def random_row(rng: random.Random, number: int, pool: int | None) -> Row:
    """A row whose texts are its own, or come from a pool of so many that other rows have, too."""

    def text(kind: str) -> str:
        return f"{kind} {number} {rng.random()}" if pool is None else f"text {rng.randrange(pool)}"

    negatives = tuple(text("negative") for _ in range(rng.choice([1, 2, 5, 8])))
    return Row(
        text("query") if rng.random() < 0.2 else f"query {number}",
        tuple(text("positive") for _ in range(rng.choice([1, 1, 1, 2, 3]))),
        negatives,
        leading_negatives=rng.choice([0, 0, 0, min(2, len(negatives))]),
    )


def random_task(rng: random.Random, name: str) -> Task:
    """A task of whose rows all, some or none have texts in common, and some stand twice."""
    size = rng.choice([30, 90, 250])
    pool = rng.choice([None, None, 12, 60, 400, 5000])
    rows = [random_row(rng, number, pool if rng.random() < 0.9 else None) for number in range(size)]
    if rng.random() < 0.3:
        rows += rng.choices(rows, k=size // 3)
    objective = {"num_negatives": rng.choice([0, 1, 3])} if rng.random() < 0.2 else {}
    return Task(name, rows, own_passages_only=rng.random() < 0.2, objective=objective)


def plan_of_case(case: int) -> list[Any]:
    """Of every epoch: a digest of all ranks' batches and examples, the number of batches, and the rows left out."""
    rng = random.Random(case)
    tasks = [random_task(rng, name) for name in "abcd"[: rng.choice([1, 2, 3, 4])]]
    weights = rng.choice(
        ["proportional", "proportional", "uniform", "temperature", {task.name: rng.random() for task in tasks}]
    )
    options = BatchingOptions(rng.choice(["homogeneous", "mixed"]), weights, 2.0, shuffle_rows=rng.random() < 0.8)
    batch_size, seed, world_size = rng.choice([4, 12, 24]), rng.randrange(100), rng.choice([1, 2, 4])
    dataset = RetrievalDataset(tasks, rng.choice([0, 1, 2, 5, 8]), seed=rng.randrange(100))
    try:
        ranks = [
            GlobalBatchSampler(dataset, batch_size, options, seed, rank, world_size) for rank in range(world_size)
        ]
    except ValueError as error:
        return [str(error)]
    found: list[Any] = []
    for epoch in range(EPOCHS):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        batches = [[list(batch) for batch in sampler] for sampler in ranks]
        examples = [[[dataset[key].texts for key in batch] for batch in of_rank] for of_rank in batches]
        plan = ranks[0].plan()
        found.append([digest(json.dumps([batches, examples])).hex(), len(plan.batches), plan.rows_left_out])
    return found


def test_batches_are_those_of_the_record() -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert len(recorded) == CASES
    for case, expected in enumerate(recorded):
        assert plan_of_case(case) == expected, f"case {case}"


@pytest.mark.parametrize("harm", ["small windows", "numbers that begin with the same bits"])
def test_batches_do_not_depend_on_what_is_compared_at_once(harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if harm == "small windows":
        monkeypatch.setattr(meetings, "ROWS_AHEAD", 1)
        monkeypatch.setattr(meetings, "BATCHES_AHEAD", 1)
    else:
        numbers: dict[str, int] = {}
        monkeypatch.setattr(row_table, "text_number", lambda text: numbers.setdefault(text, len(numbers)))
    recorded = json.loads(RECORD.read_text("utf-8"))
    for case in range(3, CASES, 6):
        assert plan_of_case(case) == recorded[case], f"case {case}"


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(plan_of_case(case)) for case in range(CASES))
    RECORD.write_text(f"[\n{lines}\n]\n", "utf-8")
