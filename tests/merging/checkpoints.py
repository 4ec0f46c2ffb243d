"""Random embedders to merge, saved as training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.model.embedding import EmbeddingModel
from tests.embedders import make_config
from tests.tiny_models import tiny_model, tiny_tokenizer


def save_embedder(folder: Path, backbone: Any, seed: int, pooling: str = "mean", **more: Any) -> Path:
    torch.manual_seed(seed)
    model = EmbeddingModel(backbone, make_config(pooling=pooling, latents=4, latent_heads=4, **more))
    for parameter in model.pooler.parameters():
        parameter.data.normal_(std=0.3)
    save_checkpoint(model, folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int, pooling: str = "mean", **settings: Any) -> Path:
    """A random adapter, saved as training does."""
    lora = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings))
    torch.manual_seed(seed)
    backbone: Any = get_peft_model(tiny_model("llama"), lora)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    instructions = {"shared": "Find alike", f"task_{seed}": "Find another"}
    return save_embedder(folder, backbone, seed, pooling, base_model=str(base), instructions=instructions)
