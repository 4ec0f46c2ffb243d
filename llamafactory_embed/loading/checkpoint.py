"""Checkpoints of embedders: an adapter or full weights, the pooler, and what is needed to serve them alike."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from attention_patch import Backend

from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from .llm2vec_adapters import ModuleNames, adapter_for_causal_lm
from .weights import ADAPTER_NAME as ADAPTER_NAME
from .weights import load_backbone_weights, part_of_state_dict, save_backbone


POOLER_NAME = "pooler.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"


def save_checkpoint(model: EmbeddingModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write adapter or weights, pooler and configuration. `state_dict` is that of the whole model where an engine
    (FSDP, ZeRO-3) had to collect it."""
    folder = Path(folder)
    save_backbone(model.backbone, folder, state_dict)
    pooler = part_of_state_dict(state_dict, "pooler.") if state_dict is not None else model.pooler.state_dict()
    if pooler:
        temporary = folder / f"{POOLER_NAME}.tmp"
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in pooler.items()}, temporary)
        os.replace(temporary, folder / POOLER_NAME)
    model.embedding_config.save(folder)


def load_checkpoint_weights(model: EmbeddingModel, folder: str | Path) -> None:
    """Put the weights of a checkpoint into a model of the same shape, to resume or to go back to the best one."""
    folder = Path(folder)
    load_backbone_weights(model.backbone, folder)
    _load_pooler(model, folder)


def load_embedding_model(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> EmbeddingModel:
    """Load a checkpoint for inference, its adapters merged in their order."""
    config = EmbeddingConfig.load(folder)
    model = EmbeddingModel(load_backbone(folder, config, dtype), config, backend=backend)
    _load_pooler(model, Path(folder))
    return model.requires_grad_(False).eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_backbone(folder: str | Path, config: EmbeddingConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The language model of a checkpoint."""
    folder = Path(folder)
    kwargs: dict[str, Any] = {"dtype": dtype or "auto"}
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return AutoModel.from_pretrained(folder, **kwargs)

    base = config.base_model or PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise ValueError(f"The adapter in {folder} does not name its base model: set `base_model` in its config.")
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **kwargs)
    except OSError as error:
        raise ValueError(f"The adapter in {folder} belongs to {base}, which cannot be loaded: {error}") from error
    modules = ModuleNames.of_model(model)
    with tempfile.TemporaryDirectory() as cache:
        for adapter in [*config.merged_adapters, str(folder)]:
            renamed = adapter_for_causal_lm(adapter, modules, cache)
            model = PeftModel.from_pretrained(model, renamed).merge_and_unload()
    return model


def _load_pooler(model: EmbeddingModel, folder: Path) -> None:
    if not model.pooler.state_dict():
        return
    path = folder / POOLER_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {POOLER_NAME}, which `pooling: {model.embedding_config.pooling}` needs.")
    model.pooler.load_state_dict(load_file(path))
