"""Two ranks train `stage: ddm` and `ddm-sft` as one process does with the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.e2e.conftest import REPOSITORY
from tests.e2e.contrastive_runs import RunResult, perform
from tests.e2e.ddm_runs import DDM, RUNS, write_data
from tests.e2e.token_runs import recipe


pytestmark = pytest.mark.process

TIME_LIMIT = 400  # seconds of the torchrun
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


def run_on_two_ranks(
    place: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]], **variables: str
) -> dict[str, RunResult]:
    """All runs, in one start of torchrun."""
    place.mkdir()
    (place / "runs.json").write_text(json.dumps({name: settings | options for name, options in runs.items()}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.e2e.token_runs", str(place)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return {name: RunResult(**torch.load(place / f"{name}.pt")) for name in runs}


@pytest.fixture(scope="module")
def two_ranks(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    return run_on_two_ranks(folder / "ddp", settings, ALL_RUNS)


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


@pytest.mark.parametrize("engine", ["zero-3", "fsdp2"])
def test_an_engine_that_cuts_the_model_up_trains_as_ddp(
    engine: str, settings: dict[str, Any], two_ranks: dict[str, RunResult], folder: Path
) -> None:
    """Every rank runs as many forwards as the others, whatever masks they have."""
    if engine == "zero-3":
        pytest.importorskip("deepspeed")
        config = {"deepspeed": str(REPOSITORY / "examples" / "deepspeed" / "ds_z3_config.json")}
        found = run_on_two_ranks(folder / engine, settings | config, CUT_UP)
    else:
        path = REPOSITORY / "examples" / "accelerate" / "fsdp2_config.yaml"
        fsdp = yaml.safe_load(path.read_text(encoding="utf-8"))["fsdp_config"]
        variables = {name.upper(): str(value) for name, value in fsdp.items()}  # as `accelerate launch` does
        found = run_on_two_ranks(folder / engine, settings, CUT_UP, ACCELERATE_USE_FSDP="true", **variables)
    for name in CUT_UP:
        assert found[name].losses == pytest.approx(two_ranks[name].losses, abs=1e-4), name
