"""The host's options under the stages of this package: each runs, or is refused by name in one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments

from llamafactory_embed.stages.host_settings import OWN_STAGES, REFUSED, refuse_unsupported, unsupported_settings
from tests.e2e import contrastive_runs, token_runs
from tests.e2e.contrastive_runs import LORA, RunResult, perform


Run = Callable[..., RunResult]

# A value of each option that is refused.
REFUSED_VALUES: dict[str, Any] = {
    "neftune_noise_alpha": 5.0,
    "torch_compile_mode": "reduce-overhead",
    "fp8": True,
    "mixture_of_depths": "convert",
    "parallelism_config": {"cp_size": 2},
    "label_smoothing_factor": 0.1,
    "use_dft_loss": True,
    "use_asft_loss": True,
    "use_eaft_loss": True,
    "moe_aux_loss_coef": 0.01,
    "average_tokens_across_devices": False,
    "use_unsloth": True,
    "shift_attn": True,
    "use_liger_kernel": True,
    "use_kt": True,
    "optim": "galore_adamw_layerwise",
    "galore_layerwise": True,
    "apollo_layerwise": True,
    "ddp_broadcast_buffers": True,
    "auto_find_batch_size": True,
    "train_sampling_strategy": "group_by_length",
    "sortish_sampler": True,
    "accelerator_config": {"split_batches": True},
    "dataloader_persistent_workers": True,
    "predict_with_generate": True,
}

# Options that change nothing in one step on a CPU: together they give the loss and the parameters of a run without.
NEUTRAL: dict[str, Any] = {
    "accelerator_config": {"non_blocking": True, "use_seedable_sampler": False},
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 3,
    "ddp_find_unused_parameters": True,
    "full_determinism": True,
    "gradient_checkpointing": True,
    "ignore_data_skip": True,
    "include_num_input_tokens_seen": "non_padding",
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
    "torch_empty_cache_steps": 1,
    "upcast_layernorm": True,
    "upcast_lmhead_output": True,
}

RUNNING: dict[str, dict[str, Any]] = {
    "adafactor": {"optim": "adafactor"},
    "adagrad": {"optim": "adagrad"},
    "bf16": {"bf16": True},
    "checkpointing-lora": {**LORA, "gradient_checkpointing": True, "disable_gradient_checkpointing": True},
    "cosine-with-minimum": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "from-scratch": {"train_from_scratch": True},
    "loraplus": {**LORA, "loraplus_lr_ratio": 4.0},
    "muon": {"use_muon": True},
    "oft": {"finetuning_type": "oft", "oft_block_size": 4},
    "rope-scaling": {"rope_scaling": "linear", "cutoff_len": 512},
    "warmup-stable-decay": {"lr_scheduler_type": "warmup_stable_decay"},
}

RECIPES = {"contrastive": contrastive_runs, "mntp": token_runs}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "contrastive": contrastive_runs.write_data(folder / "contrastive"),
        "mntp": token_runs.write_documents(folder / "mntp"),
    }


@pytest.fixture
def run(tiny_llama: Path, data: dict[str, Path], tmp_path: Path) -> Run:
    """One step of a stage, with these options."""

    def perform_recipe(stage: str, name: str = "run", **options: Any) -> RunResult:
        options = {"batch_size": 4, "max_steps": 1} | options
        return perform(RECIPES[stage].recipe(tiny_llama, data[stage], tmp_path / name, **options))

    return perform_recipe


@pytest.mark.parametrize("stage", RECIPES)
def test_options_that_change_no_number(stage: str, run: Run) -> None:
    plain, with_options = run(stage, "plain"), run(stage, "with-options", **NEUTRAL)
    assert with_options.losses == plain.losses
    assert with_options.parameters.keys() == plain.parameters.keys()
    for name, value in plain.parameters.items():
        assert (with_options.parameters[name] - value).abs().max() < 1e-6, name


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("stage", RECIPES)
def test_an_option_runs(stage: str, name: str, run: Run) -> None:
    result = run(stage, **RUNNING[name])
    assert len(result.losses) == 1
    assert math.isfinite(result.losses[0])
    assert result.parameters


def test_every_refusal_has_an_example() -> None:
    assert REFUSED_VALUES.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_is_refused_by_its_name(name: str) -> None:
    for stage in OWN_STAGES:
        with pytest.raises(ValueError, match=rf"^`{name}: .*` is not supported by `stage: {stage}`: .*\.$"):
            refuse_unsupported({"stage": stage, name: REFUSED_VALUES[name]})
    assert unsupported_settings({"stage": "sft", name: REFUSED_VALUES[name]}) == []
    assert unsupported_settings({"stage": "stage-of-another-package", name: REFUSED_VALUES[name]}) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_an_option_of_the_host_whose_default_is_not(name: str) -> None:
    classes = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments)
    fields = [field for each in classes for field in dataclasses.fields(each) if field.name == name]
    assert fields
    assert unsupported_settings({"stage": "mntp", name: fields[0].default}) == []


def test_settings_that_the_host_has_parsed() -> None:
    """Enumerations and records instead of a recipe's words."""
    strategy = SimpleNamespace(split_batches=False, dispatch_batches=True)
    (sentence,) = unsupported_settings({"stage": "ddm", "accelerator_config": strategy})
    assert "dispatch_batches" in sentence
    (sentence,) = unsupported_settings({"stage": "ddm", "optim": SimpleNamespace(value="lomo")})
    assert sentence.startswith("`optim: lomo` is not supported by `stage: ddm`")


@pytest.mark.parametrize("stage", RECIPES)
@pytest.mark.parametrize("name", ["neftune_noise_alpha", "torch_compile_mode", "label_smoothing_factor"])
def test_a_run_refuses_before_it_loads_anything(stage: str, name: str, run: Run) -> None:
    with pytest.raises(ValueError, match=f"`{name}: .*` is not supported by `stage: {stage}`"):
        run(stage, **{name: REFUSED_VALUES[name]}, dataset="there_is_none")
