"""`stage: mntp`: resumed = uninterrupted, and two ranks of DDP, DeepSpeed and FSDP2 = one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .contrastive_runs import RunResult, perform
from .token_runs import recipe, write_documents
from .two_ranks import assert_trained_alike, engine_runs, engine_setup, largest_difference, run_on_two_ranks


LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
TOKEN_RUNS = "tests.e2e.token_runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, folder: Path) -> dict[str, Any]:
    """What all recipes have in common."""
    return {"model": str(tiny_llama), "data": str(write_documents(folder / "data"))}


# ---------------------------------------------------------------------------------------------------------------
# Interrupted runs
# ---------------------------------------------------------------------------------------------------------------

# Everything that has a state: random numbers of dropout, momenta of the optimizer, the schedule, the mask's embedding.
STATEFUL = {
    **LORA, "mask_token": "mask", "lora_dropout": 0.2, "optim": "adamw_torch", "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "save_strategy": "steps",
}  # fmt: skip

# An epoch has 8 batches of 8 rows.
RESUMED_RUNS: dict[str, dict[str, Any]] = {
    "first epoch": {"max_steps": 5, "save_steps": 3},
    "second epoch": {"max_steps": 14, "save_steps": 11, "dataloader_num_workers": 2},
    "accumulation": {"max_steps": 7, "save_steps": 6, "gradient_accumulation_steps": 3},
    "stream": {"max_steps": 14, "save_steps": 11, "streaming": True},
    "full": {"max_steps": 5, "save_steps": 3, "finetuning_type": "full"},
}


@pytest.mark.parametrize("name", RESUMED_RUNS)
def test_interrupted_and_resumed_is_uninterrupted(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    options = {**settings, **STATEFUL, **RESUMED_RUNS[name]}
    whole = perform(recipe(output_dir=tmp_path / "whole", **options))
    checkpoint = tmp_path / "whole" / f"checkpoint-{options['save_steps']}"
    assert checkpoint.is_dir()
    resumed = perform(recipe(output_dir=tmp_path / "resumed", **options, resume_from_checkpoint=str(checkpoint)))
    assert len(whole.losses) == options["max_steps"]
    assert resumed.losses == whole.losses  # those before the checkpoint are in its log
    assert largest_difference(resumed.parameters, whole.parameters) == 0
    assert any("mask_embedding" in parameter for parameter in whole.parameters) == (name != "full")


def test_the_best_checkpoint_comes_back(settings: dict[str, Any], tmp_path: Path) -> None:
    options = {"mask_token": "mask", **LORA, "eval_dataset": "heldout", "do_eval": True, "max_steps": 4}
    result = perform(
        recipe(
            output_dir=tmp_path, **settings, **options, eval_strategy="steps", eval_steps=1, save_strategy="steps",
            save_steps=1, load_best_model_at_end=True, metric_for_best_model="accuracy", learning_rate=0.5,
        )
    )  # fmt: skip
    best = max(metrics["eval_accuracy"] for metrics in result.metrics)
    found = json.loads((tmp_path / "eval_results.json").read_text(encoding="utf-8"))
    assert found["eval_accuracy"] == pytest.approx(best, abs=1e-9)
    assert len({metrics["eval_accuracy"] for metrics in result.metrics}) > 1


# ---------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------

EVALUATED = {"eval_dataset": "heldout", "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2}

# Compared with one process: losses, gradients, parameters and metrics.
DDP_RUNS: dict[str, dict[str, Any]] = {
    "full": {"max_tokens_per_batch": 64},
    "full-checkpointed": {
        "max_tokens_per_batch": 64, "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "full-mask-accumulated": {"mask_token": "mask", "gradient_accumulation_steps": 2, "batch_size": 4},
    # An epoch's last global batch, of 1 row, leaves a rank without any.
    "lora-mask": {**LORA, "mask_token": "mask", **EVALUATED, "batch_size": 20, "max_steps": 4},
}  # fmt: skip

# Compared with DDP, and resumed.
ENGINE_RUNS: dict[str, dict[str, Any]] = {
    "full": {"max_tokens_per_batch": 64},
    "lora-mask": {
        **LORA, "mask_token": "mask", **EVALUATED, **CHECKPOINTS, "max_steps": 4, "optim": "adamw_torch",
        "learning_rate": 1e-3, "lr_scheduler_type": "linear",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def one_process(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    return {
        name: perform(recipe(output_dir=folder / "one" / name, **settings, **options))
        for name, options in DDP_RUNS.items()
    }


@pytest.fixture(scope="module")
def ddp(settings: dict[str, Any], folder: Path) -> dict[str, RunResult]:
    runs = DDP_RUNS | engine_runs(ENGINE_RUNS, "lora-mask", folder / "ddp", "engine")
    return run_on_two_ranks(folder / "ddp", settings, runs, TOKEN_RUNS)


@pytest.mark.process
@pytest.mark.parametrize("name", DDP_RUNS)
def test_two_ranks_train_as_one_process(
    name: str, ddp: dict[str, RunResult], one_process: dict[str, RunResult]
) -> None:
    found, expected = ddp[name], one_process[name]
    assert_trained_alike(found, expected)
    assert found.metrics == [pytest.approx(metrics, rel=1e-5) for metrics in expected.metrics]
    assert bool(expected.metrics) == ("eval_dataset" in DDP_RUNS[name])


@pytest.mark.process
@pytest.mark.parametrize("engine", ["z2", "z3", "fsdp2"])
def test_an_engine_trains_as_ddp(
    engine: str, settings: dict[str, Any], folder: Path, ddp: dict[str, RunResult]
) -> None:
    config, variables = engine_setup(engine)
    runs = engine_runs(ENGINE_RUNS, "lora-mask", folder / engine, "engine")
    results = run_on_two_ranks(folder / engine, settings | config, runs, TOKEN_RUNS, **variables)
    for name, found in results.items():
        expected = ddp[name]
        assert found.losses == pytest.approx(expected.losses, abs=1e-4), name
        assert found.metrics == [pytest.approx(each, rel=1e-4) for each in expected.metrics], name
    assert results["engine-resumed"].losses == pytest.approx(results["engine-lora-mask"].losses, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# Evaluation without training
# ---------------------------------------------------------------------------------------------------------------

ONLY_EVALUATED = {"do_train": False, "do_eval": True, "eval_dataset": "heldout"}


def evaluation(folder: Path) -> dict[str, float]:
    """The metrics that a run leaves."""
    return json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))


@pytest.mark.process
@pytest.mark.parametrize("engine", ["z2", "z3"])
def test_an_engine_evaluates_without_training(engine: str, settings: dict[str, Any], tmp_path: Path) -> None:
    perform(recipe(output_dir=tmp_path / "one", **settings, **ONLY_EVALUATED))
    config, variables = engine_setup(engine)
    run_on_two_ranks(tmp_path / engine, settings | config, {"run": ONLY_EVALUATED}, TOKEN_RUNS, **variables)
    assert evaluation(tmp_path / engine / "run") == pytest.approx(evaluation(tmp_path / "one"), rel=1e-5)


@pytest.mark.process
def test_fsdp_does_not_evaluate_without_training(settings: dict[str, Any], tmp_path: Path) -> None:
    config, variables = engine_setup("fsdp2")
    with pytest.raises(AssertionError, match="`do_eval` without `do_train` is not supported under FSDP"):
        run_on_two_ranks(tmp_path / "run", settings | config, {"run": ONLY_EVALUATED}, TOKEN_RUNS, **variables)


@pytest.mark.process
def test_the_first_version_of_fsdp_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    _, variables = engine_setup("fsdp2")
    # accelerate itself refuses to synchronize states without an accelerator.
    synchronized = {name: "false" for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES")}
    variables |= {"FSDP_VERSION": "1", **synchronized}
    with pytest.raises(AssertionError, match=r"FSDP version 1 is not supported: .*set `fsdp_version: 2`"):
        run_on_two_ranks(tmp_path / "run", settings, {"run": {"max_steps": 1}}, TOKEN_RUNS, **variables)
