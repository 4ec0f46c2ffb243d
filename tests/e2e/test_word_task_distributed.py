"""`stage: word-task` on two ranks whose sentences need different numbers of forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .contrastive_runs import RunResult, perform, recipe, write_data
from .two_ranks import fsdp2_variables, run_on_two_ranks


pytestmark = pytest.mark.process

FULL = {
    "stage": "word-task", "train_backbone": "full", "dataset": "tagged", "classifier_dropout": 0.0, "batch_size": 4,
    "disable_shuffling": True, "max_steps": 2,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {"one-forward": FULL, "unequal-forwards": FULL | {"max_tokens_per_batch": 20}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, folder: Path) -> dict[str, Any]:
    """Data of which the first rank gets the long sentences of each global batch."""
    data = write_data(folder / "data")
    rows = [
        {"words": ["word"] * count, "ner": (["O", "B-X", "I-X"] * count)[:count]}
        for number in range(8)
        for count in [12 + number if number % 4 < 2 else 1 + number % 3]
    ]
    (data / "tagged.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    info["tagged"] = {"file_name": "tagged.jsonl", "formatting": "words"}
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {"model": str(tiny_llama), "data": str(data)}


@pytest.fixture(scope="module")
def fsdp2(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    return run_on_two_ranks(folder / "fsdp2", settings, RUNS, **fsdp2_variables())


@pytest.mark.parametrize("name", RUNS)
def test_ranks_that_gather_parameters_run_the_same_forwards(
    name: str, fsdp2: dict[str, RunResult], settings: dict[str, Any], folder: Path
) -> None:
    one = perform(recipe(output_dir=folder / "one" / name, **settings, **RUNS[name]))
    assert fsdp2[name].losses == pytest.approx(one.losses, abs=1e-4)
    assert one.losses[0] != pytest.approx(one.losses[1], abs=1e-3)
