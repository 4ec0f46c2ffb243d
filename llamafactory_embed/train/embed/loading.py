"""The host's model loader, and the embedder around what it loads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from llamafactory.extras.constants import AttentionFunction
from llamafactory.model import load_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from attention_patch import Backend

from ...data.retrieval.rows import Task
from ...hparams.embedding import EmbeddingOptions
from ...model.embedding import EmbeddingModel
from ...model.embedding_config import EmbeddingConfig


def embedding_config(
    options: EmbeddingOptions, cutoff_len: int, model_args: Any, tasks: Sequence[Task], **more: Any
) -> EmbeddingConfig:
    """What the checkpoint will remember."""
    adapters = list(model_args.adapter_name_or_path or [])
    return EmbeddingConfig.from_options(
        options,
        cutoff_len,
        instructions={task.name: task.instruction for task in tasks},
        symmetric_tasks=[task.name for task in tasks if task.symmetric],
        base_model=model_args.model_name_or_path,
        merged_adapters=[os.path.abspath(each) if os.path.isdir(each) else each for each in adapters],
        **more,
    )


def load_embedding_model_for_training(
    tokenizer: PreTrainedTokenizerBase,
    config: EmbeddingConfig,
    model_args: Any,
    finetuning_args: Any,
    is_trainable: bool,
) -> EmbeddingModel:
    """Load the language model as every stage of the host does (LoRA, QLoRA, freeze, full, Liger, …) and put the pooler
    on it."""
    backbone = load_model(tokenizer, model_args, finetuning_args, is_trainable)
    return EmbeddingModel(backbone, config, backend=attention_backend(model_args.flash_attn))


def attention_backend(flash_attn: str) -> Backend | None:
    """The back-end that `flash_attn:` asks for. The host leaves the model on sdpa where the flash-attn package is
    missing; `patch_attention` then uses torch's own kernel, or says why it cannot."""
    names: dict[AttentionFunction, Backend] = {
        AttentionFunction.DISABLED: "eager",
        AttentionFunction.SDPA: "sdpa",
        AttentionFunction.FA2: "flash_attention_2",
    }
    return names.get(AttentionFunction(flash_attn))


def set_attention_dropout(decoder: nn.Module, dropout: float) -> None:
    """Dropout on attention probabilities, the noise that makes the two views of SimCSE (Gao et al. 2021, as LLM2Vec
    applies it). Set on the modules, so that it is not saved with the configuration."""
    modules = [module for module in decoder.modules() if hasattr(module, "attention_dropout")]
    if not modules:
        raise ValueError(
            f"`simcse_dropout` does not reach the attention of {type(decoder).__name__}: use a Llama-like model."
        )
    for module in modules:
        module.attention_dropout = dropout
