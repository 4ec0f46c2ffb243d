"""What is drawn from a row in an epoch."""

from __future__ import annotations

import itertools
import random

from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.rows import Row, Task, choose_negatives, draw_example, row_random
from tests.data.retrieval.helpers import TASKS


def test_examples_are_drawn_anew_in_each_epoch() -> None:
    dataset = RetrievalDataset(TASKS, num_negatives=2)
    first = [dataset[0, row] for row in range(len(dataset))]
    second = [dataset[1, row] for row in range(len(dataset))]
    assert [dataset[0, row] for row in reversed(range(len(dataset)))] == first[::-1], "the order of drawing is free"
    changed = sum((a.positive, a.negatives) != (b.positive, b.negatives) for a, b in zip(first, second, strict=True))
    assert changed > len(dataset) / 2


def test_negatives_are_leading_then_sampled_and_each_once_before_any_twice() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        assert choose_negatives(1, 6, 2, rng) == (0,)
        three = choose_negatives(3, 6, 2, rng)
        assert three[:2] == (0, 1)
        assert three[2] in (2, 3, 4, 5)
        eight = choose_negatives(8, 6, 2, rng)
        assert set(eight[:6]) == set(range(6))
        assert len(eight) == 8
        assert set(eight[6:]) <= {2, 3, 4, 5}
    assert sorted(choose_negatives(3, 2, 2, random.Random(0))[:2]) == [0, 1]
    assert choose_negatives(0, 6, 2, rng) == choose_negatives(4, 0, 0, rng) == ()


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


def test_row_randomness_depends_on_seed_epoch_and_row() -> None:
    draws = {row_random(*key).random() for key in itertools.product(range(3), range(3), range(3))}
    assert len(draws) == 27
