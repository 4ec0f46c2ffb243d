"""Two ranks find the task weights that one process finds with the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import save_tiny_model

from .contrastive_runs import LORA, RunResult, perform, recipe, write_data
from .tdro_runs import TDRO, history_numbers, read_history, read_json
from .two_ranks import assert_trained_alike, deepspeed_config, run_on_two_ranks


pytestmark = pytest.mark.process

REFERENCE = {"ref_model": "{reference}"}
RUNS: dict[str, dict[str, Any]] = {
    "full": REFERENCE,
    "accumulated": {**REFERENCE, "gradient_accumulation_steps": 2, "tdro_measure": "paper_ratio"},
    "in-batch": {**REFERENCE, "tdro_in_batch_negatives": True, "tdro_optimizer": "adafactor"},
    "adapter-off": {**LORA, "tdro_optimizer": "adamw"},
    "cached": {**REFERENCE, "tdro_cache_reference": True, "grad_cache_tokens": 64},
    "cached-accumulated": {**REFERENCE, "grad_cache_tokens": 64, "gradient_accumulation_steps": 2},
}
# Under the engines: a whole reference beside shards of the optimizer, and none of its own beside shards of the model.
DEEPSPEED_RUNS = {"cached-accumulated": "z2", "adapter-off": "z3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, folder: Path) -> dict[str, Any]:
    """What all recipes have in common."""
    return {"model": str(tiny_llama), "data": str(write_data(folder / "data")), **TDRO}


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    reference = save_tiny_model(folder / "reference", seed=1)
    return {
        name: {
            key: value.format(reference=reference) if isinstance(value, str) else value
            for key, value in options.items()
        }
        for name, options in RUNS.items()
    }


@pytest.fixture(scope="module")
def one_process(settings: dict[str, Any], runs: dict[str, dict[str, Any]], folder: Path) -> dict[str, RunResult]:
    return {
        name: perform(recipe(output_dir=folder / "one" / name, **settings, **options))
        for name, options in runs.items()
    }


@pytest.fixture(scope="module")
def two_ranks(settings: dict[str, Any], runs: dict[str, dict[str, Any]], folder: Path) -> dict[str, RunResult]:
    return run_on_two_ranks(folder / "two", settings, runs)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_weigh_as_one_process(
    name: str, two_ranks: dict[str, RunResult], one_process: dict[str, RunResult], folder: Path
) -> None:
    assert_trained_alike(two_ranks[name], one_process[name], tolerance=2e-5)
    two, one = (folder / where / name for where in ("two", "one"))
    assert history_numbers(two) == pytest.approx(history_numbers(one), rel=1e-4)
    weights = [read_json(each / "curr_weights.json")["domain_weights"] for each in (two, one)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)
    moved = [abs(entry["weight"]["nouns"] - 0.5) for entry in read_history(two)]
    assert max(moved) > 2e-3


@pytest.fixture(scope="module")
def deepspeed(settings: dict[str, Any], runs: dict[str, dict[str, Any]], folder: Path) -> dict[str, RunResult]:
    configured = {name: runs[name] | {"deepspeed": deepspeed_config(stage)} for name, stage in DEEPSPEED_RUNS.items()}
    return run_on_two_ranks(folder / "deepspeed", settings, configured)


@pytest.mark.parametrize("name", DEEPSPEED_RUNS)
def test_deepspeed_weighs_as_one_process(
    name: str, deepspeed: dict[str, RunResult], one_process: dict[str, RunResult], folder: Path
) -> None:
    assert deepspeed[name].losses == pytest.approx(one_process[name].losses, abs=1e-4)
    engine, one = (folder / where / name for where in ("deepspeed", "one"))
    assert history_numbers(engine) == pytest.approx(history_numbers(one), rel=1e-3)
