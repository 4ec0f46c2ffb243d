"""Train on two ranks, under DDP, DeepSpeed or FSDP2, and compare what came of it with other runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from transformers.utils.import_utils import is_torch_greater_or_equal

from tests.e2e.contrastive_runs import RunResult
from tests.two_ranks import REPOSITORY, forked_ranks


EXAMPLES = REPOSITORY / "examples"


def run_on_two_ranks(
    folder: Path,
    settings: dict[str, Any],
    runs: dict[str, dict[str, Any]],
    module: str = "tests.e2e.contrastive_runs",
    **variables: str,
) -> dict[str, RunResult]:
    """Perform all of them with the recipe of `module`, in one start of torchrun; `folder/<run>` is their output."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps({name: settings | options for name, options in runs.items()}))
    forked_ranks(module, folder, DS_ACCELERATOR="cpu", **variables)
    return {name: RunResult(**torch.load(folder / f"{name}.pt")) for name in runs}


def engine_setup(engine: str) -> tuple[dict[str, str], dict[str, str]]:
    """What selects z2, z3 (of DeepSpeed) or fsdp2: options of the recipes, and variables of the environment."""
    if engine == "fsdp2":
        return {}, fsdp2_variables()
    return {"deepspeed": deepspeed_config(engine)}, {}


def fsdp2_variables() -> dict[str, str]:
    """What `accelerate launch` sets for the example's configuration; the test is skipped with torch 2.6, where the run
    would be refused."""
    if not is_torch_greater_or_equal("2.7"):
        pytest.skip("accelerate cannot shard with torch 2.6")
    config = yaml.safe_load((EXAMPLES / "accelerate" / "fsdp2_config.yaml").read_text(encoding="utf-8"))
    options = {name.upper(): str(value) for name, value in config["fsdp_config"].items()}
    return options | {"ACCELERATE_USE_FSDP": "true"}


def deepspeed_config(stage: str) -> str:
    """The example's configuration of z2 or z3; the test is skipped where DeepSpeed is not installed."""
    pytest.importorskip("deepspeed")
    return str(EXAMPLES / "deepspeed" / f"ds_{stage}_config.json")


def engine_runs(
    runs: dict[str, dict[str, Any]], interrupted: str, folder: Path, prefix: str
) -> dict[str, dict[str, Any]]:
    """`<prefix>-<run>`: all of them, and `resumed`, which goes on from step 2 of one of them in the same folder."""
    checkpoint = folder / f"{prefix}-{interrupted}" / "checkpoint-2"
    resumed = runs[interrupted] | {"resume_from_checkpoint": str(checkpoint)}
    return {f"{prefix}-{name}": options for name, options in (runs | {"resumed": resumed}).items()}


def assert_trained_alike(found: RunResult, expected: RunResult, tolerance: float = 1e-5) -> None:
    """The same losses, gradients and parameters, and those on both ranks."""
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=2e-5, equal_nan=False)
    for name in ("gradients", "parameters"):
        difference = largest_difference(getattr(found, name), getattr(expected, name))
        assert difference < tolerance, f"{name}: {difference}"
    assert found.rank_difference == 0, found.rank_difference
    assert len(set(expected.losses)) == len(expected.losses)  # the steps differ, so their order was compared as well


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of any element, NaN if there is one; both hold the same names, and some."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert expected
    return float(torch.stack([(found[name] - expected[name]).abs().max() for name in expected]).max())
