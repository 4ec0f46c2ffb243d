"""Seam: the model loader. It loads Dream and LLaDA with Liger's kernels, neither `lora_target: all` nor `resize_vocab`
takes a layer for a head of the same name, and our stages get the language model of a model that also reads images."""

from __future__ import annotations

import contextlib
import functools
import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from ..stages.registry import load_registry
from . import contract


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from transformers import PretrainedConfig, PreTrainedModel


def apply(loader: Any) -> None:
    """Register the classes, and adjust the functions of the loader that identify modules or models by name."""
    contract.check_signature(
        contract.attribute(loader, "apply_liger_kernel"), "config", "model_args", "is_trainable", "require_logits"
    )
    contract.check_signature(contract.attribute(loader, "load_config"), "model_args")
    contract.check_load_model(loader)
    adapter = importlib.import_module(f"{loader.__name__.rpartition('.')[0]}.adapter")
    contract.check_signature(contract.attribute(adapter, "find_all_linear_modules"), "model", "freeze_vision_tower")
    contract.check_signature(
        contract.attribute(adapter, "_setup_lora_tuning"),
        "config",
        "model",
        "model_args",
        "finetuning_args",
        "is_trainable",
        "cast_trainable_params_to_fp32",
    )
    importlib.import_module("llamafactory_embed.model.families")
    _apply_text_part(loader)
    _apply_liger(loader)
    _apply_linear_modules(adapter)
    _apply_vocabulary_modules(adapter)


def _apply_text_part(loader: Any) -> None:
    host_load_config, host_load_model = loader.load_config, loader.load_model

    def load_text_config(model_args: ModelArguments) -> PretrainedConfig:
        from ..loading.weights import text_part

        return text_part(host_load_config(model_args))

    @functools.wraps(host_load_model)
    def load_model(
        tokenizer: Any, model_args: ModelArguments, finetuning_args: FinetuningArguments, *args: Any, **kwargs: Any
    ) -> PreTrainedModel:
        ours = load_registry().find(finetuning_args.stage) is not None
        with mock.patch.object(loader, "load_config", load_text_config) if ours else contextlib.nullcontext():
            return host_load_model(tokenizer, model_args, finetuning_args, *args, **kwargs)

    loader.load_model = load_model


def _apply_liger(loader: Any) -> None:
    from ..model.families import find_family

    host_apply_liger_kernel = loader.apply_liger_kernel

    def apply_liger_kernel(
        config: PretrainedConfig | SimpleNamespace,
        model_args: ModelArguments,
        is_trainable: bool,
        require_logits: bool,
    ) -> None:
        family = find_family(config)
        if family is not None and family.liger_as is not None:
            config = SimpleNamespace(model_type=family.liger_as)  # the host reads nothing else
        host_apply_liger_kernel(config, model_args, is_trainable, require_logits)

    loader.apply_liger_kernel = apply_liger_kernel


def _apply_linear_modules(adapter: Any) -> None:
    host_find_all_linear_modules = adapter.find_all_linear_modules

    def find_all_linear_modules(model: PreTrainedModel, freeze_vision_tower: bool) -> list[str]:
        return spare_head(model, host_find_all_linear_modules(model, freeze_vision_tower))

    adapter.find_all_linear_modules = find_all_linear_modules


def spare_head(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The names, with whole names instead of one that the head shares with other modules: PEFT matches the end of a
    module's name, so LLaDA's `ff_out` would match a layer in each block and the head."""
    head = model.get_output_embeddings()
    if head is None:
        return names
    shared = next(name for name, module in model.named_modules() if module is head).rpartition(".")[2]
    if shared not in names:
        return names
    others = [
        name for name, module in model.named_modules() if name.rpartition(".")[2] == shared and module is not head
    ]
    return [name for name in names if name != shared] + others


def _apply_vocabulary_modules(adapter: Any) -> None:
    host_setup_lora_tuning = adapter._setup_lora_tuning

    def setup_lora_tuning(
        config: PretrainedConfig,
        model: PreTrainedModel,
        model_args: ModelArguments,
        finetuning_args: FinetuningArguments,
        is_trainable: bool,
        cast_trainable_params_to_fp32: bool,
    ) -> Any:
        if model_args.resize_vocab and finetuning_args.additional_target is None:
            finetuning_args.additional_target = vocabulary_modules(model)
        return host_setup_lora_tuning(
            config, model, model_args, finetuning_args, is_trainable, cast_trainable_params_to_fp32
        )

    adapter._setup_lora_tuning = setup_lora_tuning


def vocabulary_modules(model: PreTrainedModel) -> list[str] | None:
    """What `additional_target` has to be for a larger vocabulary under LoRA if the host's choice, the last part of the
    names of embedding and head, matches layers, too: PEFT would train and save them all, LLaDA's `ff_out` in every
    block. None leaves the choice to the host."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    targets = [name for name, module in model.named_modules() if any(module is each for each in ends)]
    others = [name for name, _ in model.named_modules() if name not in targets]
    if not any(other.endswith(target.rpartition(".")[2]) for target in targets for other in others):
        return None
    return targets
