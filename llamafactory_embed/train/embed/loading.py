"""The host's model loader, and the embedder around what it loads."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.constants import AttentionFunction
from llamafactory.model import load_model
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from attention_patch import Backend

from ...data.retrieval.reader import StreamedTask
from ...data.retrieval.rows import Task
from ...hparams.embedding import EmbeddingOptions
from ...model.checkpoint import POOLER_NAME
from ...model.embedding import EmbeddingModel
from ...model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ...model.llm2vec_adapters import ModuleNames, adapter_for_causal_lm


logger = logging.get_logger(__name__)

CONVERTED_ADAPTERS = "converted_adapters"  # the folder below `output_dir`

# How the architectures of transformers call the dropout of attention probabilities.
ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout")

# What a checkpoint and a recipe that evaluates it should say alike.
SERVED_ALIKE = ("attention", "sliding_window", "pooling", "skip_instruction", "query_template", "document_template")


def embedding_config(
    options: EmbeddingOptions, cutoff_len: int, model_args: Any, tasks: Sequence[Task | StreamedTask], **more: Any
) -> EmbeddingConfig:
    """What the checkpoint will remember; `load_embedding_model_for_training` adds which adapters were merged."""
    return EmbeddingConfig.from_options(
        options,
        cutoff_len,
        instructions={task.name: task.instruction for task in tasks},
        symmetric_tasks=[task.name for task in tasks if task.symmetric],
        base_model=model_args.model_name_or_path,
        **more,
    )


def load_embedding_model_for_training(
    tokenizer: PreTrainedTokenizerBase,
    config: EmbeddingConfig,
    model_args: Any,
    finetuning_args: Any,
    training_args: Any,
) -> EmbeddingModel:
    """Load the language model as every stage of the host does (LoRA, QLoRA, freeze, full, Liger, …) and put the pooler
    on it."""
    is_trainable = training_args.do_train
    converted = with_adapters_of_causal_lm(model_args, training_args)
    backbone = load_model(tokenizer, converted, finetuning_args, is_trainable)
    folder = model_args.adapter_folder or ""
    adapters = [
        os.path.abspath(os.path.join(name, folder)) if os.path.isdir(name) else name
        for name in model_args.adapter_name_or_path or []
    ]
    can_merge = not (model_args.use_unsloth or model_args.use_kt)  # as the host has it
    new_adapter = is_trainable and finetuning_args.create_new_adapter and can_merge
    config = dataclasses.replace(config, merged_adapters=merged_adapters(adapters, backbone, new_adapter))
    model = EmbeddingModel(backbone, config, backend=attention_backend(model_args.flash_attn))
    start = [model_args.model_name_or_path, *adapters][-1]
    continue_pooler(model, start)
    if not is_trainable:
        warn_of_changes(model, start)
    return model


def with_adapters_of_causal_lm(model_args: Any, training_args: Any) -> Any:
    """The arguments with every adapter in the host's layout: those of LLM2Vec are converted into a folder below
    `output_dir`. (A checkpoint remembers their own names, and `Encoder` converts them when it loads them.)"""
    if not model_args.adapter_name_or_path:
        return model_args
    hub = {
        "revision": model_args.model_revision,
        "token": model_args.hf_hub_token,
        "cache_dir": model_args.cache_dir,
    }
    trust = model_args.trust_remote_code
    converted = copy.copy(model_args)
    with training_args.main_process_first(desc="converting adapters"):
        base = AutoConfig.from_pretrained(model_args.model_name_or_path, trust_remote_code=trust, **hub)
        modules = ModuleNames.of_config(base, trust)
        cache = Path(training_args.output_dir, CONVERTED_ADAPTERS)
        converted.adapter_name_or_path = [
            adapter_for_causal_lm(name, modules, cache, subfolder=model_args.adapter_folder or "", **hub)
            for name in model_args.adapter_name_or_path
        ]
    return converted


def merged_adapters(adapters: Sequence[str], backbone: nn.Module, new_adapter: bool) -> list[str]:
    """Those of the adapters that the host has merged into the weights. The last one is not among them if it goes on
    training, or if the weights are such that nothing can be merged into them (quantized, ZeRO-3)."""
    if not isinstance(backbone, PeftModel):
        return list(adapters)
    is_quantized = getattr(backbone.get_base_model(), "quantization_method", None) is not None  # set by transformers
    can_merge = not is_quantized and not is_deepspeed_zero3_enabled()
    return list(adapters) if new_adapter and can_merge else list(adapters[:-1])


def continue_pooler(model: EmbeddingModel, start: str) -> None:
    """Take over the pooler of the checkpoint that the recipe starts from, if it has the same kind."""
    path = Path(start, POOLER_NAME)
    if not path.is_file() or EmbeddingConfig.load(start).pooling != model.embedding_config.pooling:
        return
    try:
        model.pooler.load_state_dict(load_file(path))
    except RuntimeError as error:
        saved = EmbeddingConfig.load(start)
        raise ValueError(
            f"The pooler in {start} was trained with `latents: {saved.latents}`, `latent_heads: {saved.latent_heads}` "
            f"and `latent_head_size: {saved.latent_head_size}`: set them alike."
        ) from error


def warn_of_changes(model: EmbeddingModel, checkpoint: str) -> None:
    """Say what an evaluation does otherwise than the checkpoint it evaluates."""
    if not Path(checkpoint, CONFIG_NAME).is_file():
        return
    trained, now = EmbeddingConfig.load(checkpoint), model.embedding_config
    changed = [
        f"`{name}: {getattr(trained, name)}`" for name in SERVED_ALIKE if getattr(trained, name) != getattr(now, name)
    ]
    if changed:
        logger.warning_rank0(f"{checkpoint} was trained with {', '.join(changed)}; the recipe says otherwise.")


def attention_backend(flash_attn: str) -> Backend | None:
    """The back-end that `flash_attn:` asks for. The host leaves the model on sdpa where the flash-attn package is
    missing; `patch_attention` then uses torch's own kernel, or says why it cannot."""
    names: dict[AttentionFunction, Backend] = {
        AttentionFunction.DISABLED: "eager",
        AttentionFunction.SDPA: "sdpa",
        AttentionFunction.FA2: "flash_attention_2",
    }
    return names.get(AttentionFunction(flash_attn))


def set_attention_dropout(decoder: PreTrainedModel, dropout: float) -> None:
    """Dropout on attention probabilities, the noise that makes the two views of SimCSE (Gao et al. 2021, as LLM2Vec
    applies it). Set on the modules, so that it is not saved with the configuration."""
    reached = 0
    for module in decoder.modules():
        names = inspect.unwrap(type(module).forward).__code__.co_names
        for name in set(ATTENTION_DROPOUT).intersection(names):
            if isinstance(getattr(module, name), nn.Dropout):
                getattr(module, name).p = dropout
            else:
                setattr(module, name, dropout)
            reached += 1
    layers = decoder.config.num_hidden_layers
    if reached != layers:
        raise ValueError(
            f"`simcse_dropout` reaches the attention of {reached} of the {layers} layers of {type(decoder).__name__}: "
            "use a model whose attention has its dropout where Llama or GPT-2 have it."
        )
