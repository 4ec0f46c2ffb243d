"""Shares of tasks: by size, by temperature, by weights files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llamafactory_embed.data.retrieval.weights import share_out, task_shares


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
        ('{"b": 1,\n oops}', r"w\.json is not valid JSON \(.*line 2"),
    ],
)
def test_bad_weights_files(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        task_shares(str(tmp_path / "w.json"), ["b", "c"], [1, 1])
    with pytest.raises(ValueError, match="there is no file `even`"):
        task_shares("even", ["b", "c"], [1, 1])
