"""Two ranks of DDP, DeepSpeed and FSDP2 train `stage: contrastive` as one process does with the joined batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_embed import Encoder
from llamafactory_embed.export.verify import stacked
from llamafactory_embed.model.quantization import QuantizationRanges

from .contrastive_runs import DENSE, LATENT, LORA, MULTI_VECTOR, OBJECTIVES, RunResult, perform, recipe, write_data
from .two_ranks import assert_trained_alike, deepspeed_config, engine_runs, fsdp2_variables, run_on_two_ranks


pytestmark = pytest.mark.process

EVALUATED = {"eval_dataset": "nouns_heldout,words_heldout", "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}
CHECKPOINTS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}

# Compared with one process: losses, gradients, parameters and metrics.
DDP_RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "full-several-forwards": {"max_tokens_per_batch": 64},
    "full-cached": {"grad_cache_tokens": 64},
    # In the second step, when DDP agrees on its buckets, one rank has [216] tokens and the other one [217, 5] …
    "one-chunk-beside-two": {"grad_cache_tokens": 219},
    # … and [96, 93, 27] and [96, 97, 29], whose largest chunks are the first and the second one.
    "largest-chunk-elsewhere": {"grad_cache_tokens": 98},
    "lora": {**LORA, **EVALUATED},
    "lora-several-forwards": {**LORA, "max_tokens_per_batch": 64},
    "lora-cached-accumulated": {**LORA, "grad_cache_tokens": 64, "gradient_accumulation_steps": 2},
    "lora-budget-accumulated": {
        **LORA, "auto_token_budget": True, "max_tokens_per_batch": 64, "gradient_accumulation_steps": 2,
    },
    "latent-both-directions": {
        **LORA, **LATENT, **DENSE, "both_directions": True, "false_negative_margin": 0.1,
        "gradient_accumulation_steps": 2,
    },
    "own-negatives": {"cross_device_negatives": False, "num_negatives": 2, "contrastive_loss": "repllama"},
    "cosent": {"contrastive_loss": "cosent", "dataset": "scored", "num_negatives": 0},
    "cosent-cached": {"contrastive_loss": "cosent", "dataset": "scored", "num_negatives": 0, "grad_cache_tokens": 64},
    "objectives": OBJECTIVES,
    "multi-vector": {**LORA, **EVALUATED, **MULTI_VECTOR},
    "quantized": {**LORA, "quantization_aware": "binary", "matryoshka_dims": [8, 32]},
}  # fmt: skip

# Compared with DDP: losses, metrics, and what the checkpoint embeds; then a checkpoint is resumed.
ENGINE_RUNS: dict[str, dict[str, Any]] = {
    "cached": {"grad_cache_tokens": 64},
    "lora-latent": {
        **LORA,
        **LATENT,
        **DENSE,
        **EVALUATED,
        **CHECKPOINTS,
        "max_tokens_per_batch": 64,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "load_best_model_at_end": True,
        "metric_for_best_model": "ndcg@10",
    },
    "lora-cached-accumulated": {**LORA, "grad_cache_tokens": 64, "gradient_accumulation_steps": 2},
    "objectives-cached": {**OBJECTIVES, "grad_cache_tokens": 64},
    "multi-vector-cached": {**LORA, **MULTI_VECTOR, "grad_cache_tokens": 64},
}


TEXTS = ["the study of stars", "a young horse", "to run away", "an instrument with strings", "blue"]


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
        for name, options in DDP_RUNS.items()
    }


@pytest.fixture(scope="module")
def ddp(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    runs = DDP_RUNS | engine_runs(ENGINE_RUNS, "lora-latent", folder / "ddp", "ddp")
    return run_on_two_ranks(folder / "ddp", settings, runs)


@pytest.fixture(scope="module")
def deepspeed(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    runs = {}
    for stage in ("z2", "z3"):
        configured = {name: options | {"deepspeed": deepspeed_config(stage)} for name, options in ENGINE_RUNS.items()}
        runs |= engine_runs(configured, "lora-latent", folder / "deepspeed", stage)
    return run_on_two_ranks(folder / "deepspeed", settings, runs)


@pytest.fixture(scope="module")
def fsdp2(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    runs = engine_runs(ENGINE_RUNS, "lora-latent", folder / "fsdp2", "fsdp2")
    return run_on_two_ranks(folder / "fsdp2", settings, runs, **fsdp2_variables())


@pytest.mark.parametrize("name", DDP_RUNS)
def test_two_ranks_train_as_one_process(
    name: str, ddp: dict[str, RunResult], one_process: dict[str, RunResult]
) -> None:
    assert_trained_alike(ddp[name], one_process[name])


@pytest.mark.parametrize("name", ["lora", "multi-vector"])
def test_evaluation_on_two_ranks(name: str, ddp: dict[str, RunResult], one_process: dict[str, RunResult]) -> None:
    found, expected = ddp[name].metrics, one_process[name].metrics
    assert expected
    assert found == [pytest.approx(metrics, abs=1e-6) for metrics in expected]


def test_two_ranks_measure_the_same_ranges(
    folder: Path, ddp: dict[str, RunResult], one_process: dict[str, RunResult]
) -> None:
    found, expected = (QuantizationRanges.load(folder / engine / "quantized") for engine in ("ddp", "one"))
    assert found.batches == expected.batches == 3
    assert found.texts == expected.texts
    for size in (8, 32):
        np.testing.assert_allclose(found.of(size, True), expected.of(size, True), atol=1e-5)


@pytest.mark.parametrize(("prefix", "engine"), [("z2", "deepspeed"), ("z3", "deepspeed"), ("fsdp2", "fsdp2")])
def test_an_engine_trains_as_ddp(
    prefix: str, engine: str, request: pytest.FixtureRequest, folder: Path, ddp: dict[str, RunResult]
) -> None:
    results: dict[str, RunResult] = request.getfixturevalue(engine)

    def embed(run: str) -> Any:
        return stacked(Encoder(folder / run).encode(TEXTS))

    for name in ENGINE_RUNS:
        found, expected = results[f"{prefix}-{name}"], ddp[f"ddp-{name}"]
        assert found.losses == pytest.approx(expected.losses, abs=1e-4), name
        assert found.metrics == [pytest.approx(each, abs=1e-4) for each in expected.metrics], name
        np.testing.assert_allclose(embed(f"{engine}/{prefix}-{name}"), embed(f"ddp/ddp-{name}"), atol=1e-4)

    assert results[f"{prefix}-resumed"].losses == pytest.approx(results[f"{prefix}-lora-latent"].losses, abs=1e-6)
    np.testing.assert_allclose(embed(f"{engine}/{prefix}-resumed"), embed(f"{engine}/{prefix}-lora-latent"), atol=1e-6)


@pytest.mark.parametrize("stage", ["z2", "z3"])
def test_a_checkpoint_of_deepspeed_holds_no_base_model(
    stage: str, deepspeed: dict[str, RunResult], folder: Path
) -> None:
    checkpoint = folder / "deepspeed" / f"{stage}-lora-latent" / "checkpoint-2" / "global_step2"
    file = next(checkpoint.glob("*mp_rank_00_model_states.pt"))  # ZeRO-3 writes one for each rank
    saved = torch.load(file, weights_only=False)
    assert all("lora_" in name or name.startswith(("pooler.", "dense.")) for name in saved["module"])
