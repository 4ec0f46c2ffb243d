"""The host's model loader, for every stage that puts one of our modules around a language model."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras.constants import AttentionFunction
from llamafactory.model import load_model
from peft import PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from attention_patch import Backend

from ..stages.host_settings import check_that_the_base_is_kept
from . import pissa
from .llm2vec_adapters import ModuleNames, adapter_for_causal_lm
from .weights import text_part, weights_must_fit


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


CONVERTED_ADAPTERS = "converted_adapters"  # below `output_dir`


@dataclass(frozen=True)
class LoadedBackbone:
    """A language model as the host loads it (LoRA, QLoRA, freeze, full, Liger, …)."""

    model: PreTrainedModel | PeftModel
    start: str
    """Where its last weights come from: the model, or the last adapter on it."""
    merged_adapters: list[str]


def load_backbone_for_training(
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    finetuning_args: FinetuningArguments,
    training_args: TrainingArguments,
) -> LoadedBackbone:
    """Load the language model as every stage of the host does; its adapters may also be LLM2Vec's."""
    is_trainable = training_args.do_train
    check_that_the_base_is_kept(model_args.train_from_scratch, finetuning_args.finetuning_type)
    converted = with_adapters_of_causal_lm(model_args, training_args)
    with weights_must_fit():
        backbone = load_model(tokenizer, converted, finetuning_args, is_trainable)
    adapters = adapter_folders(model_args)
    can_merge = not (model_args.use_unsloth or model_args.use_kt)  # as in the host's loader
    new_adapter = is_trainable and finetuning_args.create_new_adapter and can_merge
    if finetuning_args.pissa_init and is_trainable and (new_adapter or not adapters):
        pissa.remember_start(backbone)
    start = [model_args.model_name_or_path, *adapters][-1]
    return LoadedBackbone(backbone, start, merged_adapters(adapters, backbone, new_adapter))


def adapter_folders(model_args: ModelArguments) -> list[str]:
    """The adapters that the recipe starts from, those on disk by their absolute path."""
    folder = model_args.adapter_folder or ""
    return [
        os.path.abspath(os.path.join(name, folder)) if os.path.isdir(name) else name
        for name in model_args.adapter_name_or_path or []
    ]


def load_config(model_args: ModelArguments) -> PretrainedConfig:
    """The configuration of the model, before it is loaded."""
    options = {"trust_remote_code": model_args.trust_remote_code, **hub_options(model_args)}
    return text_part(AutoConfig.from_pretrained(model_args.model_name_or_path, **options))


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "token": model_args.hf_hub_token,
        "cache_dir": model_args.cache_dir,
    }


def with_adapters_of_causal_lm(model_args: ModelArguments, training_args: TrainingArguments) -> ModelArguments:
    """The arguments with every adapter in the host's layout: those of LLM2Vec are converted into a folder below
    `output_dir`. (A checkpoint remembers the names in the recipe, and `Encoder` converts when it loads.)"""
    if not model_args.adapter_name_or_path:
        return model_args
    converted = copy.copy(model_args)
    with training_args.main_process_first(desc="converting adapters"):
        modules = ModuleNames.of_config(load_config(model_args), model_args.trust_remote_code)
        cache = Path(training_args.output_dir, CONVERTED_ADAPTERS)
        converted.adapter_name_or_path = [
            adapter_for_causal_lm(
                name, modules, cache, subfolder=model_args.adapter_folder or "", **hub_options(model_args)
            )
            for name in model_args.adapter_name_or_path
        ]
    return converted


def merged_adapters(adapters: Sequence[str], backbone: PreTrainedModel | PeftModel, new_adapter: bool) -> list[str]:
    """Those of the adapters that the host has merged into the weights. The last one is not among them if it goes on
    training, or if the weights are such that nothing can be merged into them (quantized, ZeRO-3)."""
    if not isinstance(backbone, PeftModel):
        return list(adapters)
    is_quantized = getattr(backbone.get_base_model(), "quantization_method", None) is not None  # set by transformers
    can_merge = not is_quantized and not is_deepspeed_zero3_enabled()
    return list(adapters) if new_adapter and can_merge else list(adapters[:-1])


def attention_backend(flash_attn: str) -> Backend | None:
    """The back-end that `flash_attn:` asks for. The host leaves the model on sdpa where the flash-attn package is
    missing; `patch_attention` then uses torch's own kernel, or says why it cannot."""
    names: dict[AttentionFunction, Backend] = {
        AttentionFunction.DISABLED: "eager",
        AttentionFunction.SDPA: "sdpa",
        AttentionFunction.FA2: "flash_attention_2",
    }
    return names.get(AttentionFunction(flash_attn))
