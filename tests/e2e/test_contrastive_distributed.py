"""Two ranks of DDP, DeepSpeed and FSDP2 train `stage: contrastive` as one process does with the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from llamafactory_embed import Encoder

from . import contrastive_runs
from .conftest import REPOSITORY
from .contrastive_runs import LATENT, LORA, RunResult, perform, recipe, write_data


pytestmark = pytest.mark.process

EXAMPLES = REPOSITORY / "examples"

EVALUATED = {"eval_dataset": "nouns_heldout,words_heldout", "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}
CHECKPOINTS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}

# Compared with one process: losses, gradients, parameters and metrics.
DDP_RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full-several-forwards": {"max_tokens_per_batch": 64},
    "full-cached": {"grad_cache_tokens": 64},
    "lora": {**LORA, **EVALUATED},
    "lora-several-forwards": {**LORA, "max_tokens_per_batch": 64},
    "lora-cached-accumulated": {**LORA, "grad_cache_tokens": 64, "gradient_accumulation_steps": 2},
    "latent-both-directions": {
        **LORA, **LATENT, "both_directions": True, "false_negative_margin": 0.1, "gradient_accumulation_steps": 2,
    },
    "own-negatives": {"cross_device_negatives": False, "num_negatives": 2, "contrastive_loss": "repllama"},
    "cosent": {"contrastive_loss": "cosent", "dataset": "scored", "num_negatives": 0},
    "cosent-cached": {"contrastive_loss": "cosent", "dataset": "scored", "num_negatives": 0, "grad_cache_tokens": 64},
}  # fmt: skip

# Compared with DDP: losses, metrics, and what the checkpoint embeds; then a checkpoint is resumed.
ENGINE_RUNS: dict[str, dict[str, Any]] = {
    "cached": {"grad_cache_tokens": 64},
    "lora-latent": {**LORA, **LATENT, **EVALUATED, **CHECKPOINTS, "max_tokens_per_batch": 64},
    "lora-cached-accumulated": {**LORA, "grad_cache_tokens": 64, "gradient_accumulation_steps": 2},
}
ENGINES = ("z2", "z3", "fsdp2")


TEXTS = ["the study of stars", "a young horse", "to run away", "an instrument with strings", "blue"]
TIME_LIMIT = 400  # seconds of one torchrun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of an engine leave `<engine>/<run>`."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, folder: Path) -> dict[str, Any]:
    """What all recipes have in common."""
    return {"model": str(tiny_llama), "data": str(write_data(folder / "data"))}


@pytest.fixture(scope="module")
def one_process(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    return {
        name: perform(recipe(output_dir=folder / "one" / name, **settings, **options))
        for name, options in (DDP_RUNS | {"engine-cached": ENGINE_RUNS["cached"]}).items()
    }


@pytest.fixture(scope="module")
def ddp(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    engine_runs = {f"engine-{name}": options for name, options in ENGINE_RUNS.items()}
    return run_on_two_ranks(folder / "ddp", settings, DDP_RUNS | engine_runs)


def run_on_two_ranks(
    folder: Path, settings: dict[str, Any], runs: dict[str, dict[str, Any]], **variables: str
) -> dict[str, RunResult]:
    """Perform all of them in one start of torchrun."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps({name: settings | options for name, options in runs.items()}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, contrastive_runs.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: RunResult(**torch.load(folder / f"{name}.pt")) for name in runs}


def run_engine(engine: str, settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    """All runs of an engine with the configuration that users get; the last one goes on from a checkpoint."""
    variables: dict[str, str] = {}
    if engine == "fsdp2":  # as `accelerate launch` hands it over
        config = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp2_config.yaml").read_text(encoding="utf-8"))
        variables = {name.upper(): str(value) for name, value in config["fsdp_config"].items()}
        variables["ACCELERATE_USE_FSDP"] = "true"
    else:
        pytest.importorskip("deepspeed")
        settings = settings | {"deepspeed": str(EXAMPLES / "deepspeed" / f"ds_{engine}_config.json")}
    checkpoint = folder / engine / "lora-latent" / "checkpoint-2"
    resumed = ENGINE_RUNS["lora-latent"] | {"resume_from_checkpoint": str(checkpoint)}
    return run_on_two_ranks(folder / engine, settings, ENGINE_RUNS | {"resumed": resumed}, **variables)


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    assert expected
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.mark.parametrize("name", DDP_RUNS)
def test_two_ranks_train_as_one_process(
    name: str, ddp: dict[str, RunResult], one_process: dict[str, RunResult]
) -> None:
    found, expected = ddp[name], one_process[name]
    assert found.losses == pytest.approx(expected.losses, abs=2e-5)
    assert largest_difference(found.gradients, expected.gradients) < 1e-5
    assert largest_difference(found.parameters, expected.parameters) < 1e-5
    assert found.rank_difference == 0
    assert len(set(expected.losses)) == len(expected.losses)  # the steps differ, so their order was compared as well


def test_evaluation_on_two_ranks(ddp: dict[str, RunResult], one_process: dict[str, RunResult]) -> None:
    found, expected = ddp["lora"].metrics, one_process["lora"].metrics
    assert len(expected) == 1
    assert found == [pytest.approx(metrics, abs=1e-6) for metrics in expected]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_as_ddp(
    engine: str, settings: dict[str, Any], folder: Path, ddp: dict[str, RunResult]
) -> None:
    results = run_engine(engine, settings, folder)
    for name in ENGINE_RUNS:
        expected = ddp[f"engine-{name}"]
        assert results[name].losses == pytest.approx(expected.losses, abs=1e-4), name
        assert results[name].metrics == [pytest.approx(each, abs=1e-4) for each in expected.metrics], name
        embeddings = [Encoder(folder / each).encode(TEXTS) for each in (f"{engine}/{name}", f"ddp/engine-{name}")]
        np.testing.assert_allclose(*embeddings, atol=1e-4)
    assert results["resumed"].losses == pytest.approx(results["lora-latent"].losses, abs=1e-6)
    embeddings = [Encoder(folder / engine / name).encode(TEXTS) for name in ("resumed", "lora-latent")]
    np.testing.assert_allclose(*embeddings, atol=1e-6)
