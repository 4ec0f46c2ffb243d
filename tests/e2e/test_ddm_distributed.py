"""Two ranks train `stage: ddm` and `ddm-sft` as one process does with the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.contrastive_runs import RunResult, perform
from tests.e2e.ddm_runs import DDM, RUNS, write_data
from tests.e2e.token_runs import recipe
from tests.e2e.two_ranks import engine_setup, run_on_two_ranks


pytestmark = pytest.mark.process

TOKEN_RUNS = "tests.e2e.token_runs"
EVALUATED = {"eval_dataset": "heldout", "do_eval": True, "eval_strategy": "steps", "eval_steps": 3}
# An epoch of 7 batches a rank ends inside of a step, and its last batch is shared out unevenly.
UNEVEN = {"batch_size": 6, "max_steps": 5, "gradient_accumulation_steps": 2, "packing": False}
CUT_UP = {name: RUNS[name] for name in ("several-forwards", "annealing", "blocks", "lora", "answers")}
ALL_RUNS: dict[str, dict[str, Any]] = RUNS | {"evaluated": EVALUATED, "uneven": UNEVEN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, folder: Path) -> dict[str, Any]:
    return DDM | {"model": str(tiny_llama), "data": str(write_data(folder / "data"))}


@pytest.fixture(scope="module")
def two_ranks(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    return run_on_two_ranks(folder / "ddp", settings, ALL_RUNS, TOKEN_RUNS)


@pytest.mark.parametrize("name", ALL_RUNS)
def test_two_ranks_train_as_one_process(
    name: str, settings: dict[str, Any], two_ranks: dict[str, RunResult], tmp_path: Path
) -> None:
    found = two_ranks[name]
    expected = perform(recipe(output_dir=tmp_path / name, **(settings | ALL_RUNS[name])))
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.parameters.keys() == expected.parameters.keys()
    for parameter, value in expected.parameters.items():
        torch.testing.assert_close(found.parameters[parameter], value, atol=1e-5, rtol=1e-4)
    assert found.rank_difference == 0
    assert found.metrics == [pytest.approx(each, rel=1e-4) for each in expected.metrics]
    assert bool(found.metrics) == (name == "evaluated")


@pytest.mark.parametrize("engine", ["z3", "fsdp2"])
def test_an_engine_that_cuts_the_model_up_trains_as_ddp(
    engine: str, settings: dict[str, Any], two_ranks: dict[str, RunResult], folder: Path
) -> None:
    """Every rank runs as many forwards as the others, whatever masks they have."""
    config, variables = engine_setup(engine)
    found = run_on_two_ranks(folder / engine, settings | config, CUT_UP, TOKEN_RUNS, **variables)
    for name in CUT_UP:
        assert found[name].losses == pytest.approx(two_ranks[name].losses, abs=1e-4), name
