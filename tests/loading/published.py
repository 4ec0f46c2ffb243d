"""Checkpoints as their authors write them, for tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel

from llamafactory_embed.loading.attention_pool import ATTENTION_POOL_NAME, PARAMETERS
from llamafactory_embed.model.pooling import Pooling, build_pooler
from tests.golden.case_files import BUNDLED
from tests.tiny_models import HIDDEN_SIZE, save_tiny_model


LLM2VEC = Path(__file__).parents[1] / "fixtures" / "llm2vec"
MNTP, SUPERVISED = "LLM2Vec-Tiny-mntp", "LLM2Vec-Tiny-mntp-supervised"
LATENTS = {"latents": 4, "heads": 2, "head_size": 8}


def copy_llm2vec(folder: Path) -> Path:
    """The base model and the adapters that LLM2Vec's own code has written on it."""
    case = BUNDLED / "llm2vec" / "encode"
    shutil.copytree(case / "tokenizer", folder / "base")
    shutil.copy(case / "weights.safetensors", folder / "base" / "model.safetensors")
    shutil.copy(case / "config.json", folder / "base")
    for name in (MNTP, SUPERVISED):
        shutil.copytree(LLM2VEC / name, folder / name)
    return folder


def expected_of_llm2vec() -> dict[str, Any]:
    """What it embedded."""
    return json.loads((LLM2VEC / "expected.json").read_text("utf-8"))


def save_adapter(base: Path, folder: Path, seed: int = 0, decoder: bool = True, **config: Any) -> Any:
    """A LoRA of PEFT on the bare decoder, as LLM2Vec and Pooling-and-Attention train it; returns the model."""
    model = AutoModel.from_pretrained(base)
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]} | config
    adapted = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def save_pooling_and_attention(folder: Path, pooling: Pooling, causal: bool) -> tuple[Path, Any, Any]:
    """An adapter, and the pooler under the names of the original beside it: the folder, the model, the pooler."""
    base = save_tiny_model(folder / "base", "mistral", sliding_window=None)
    model = save_adapter(base, folder / "adapter", task_type="FEATURE_EXTRACTION")
    torch.manual_seed(3)
    pooler = build_pooler(
        pooling, hidden_size=HIDDEN_SIZE, num_layers=2, causal=causal, latents_init_std=1.0, **LATENTS
    ).eval()
    theirs = {ours: name for name, ours in PARAMETERS.items()}
    state = {theirs[name]: each for name, each in pooler.state_dict().items()}
    if "pos_emb.weight" in state:  # the original has them for 32 layers
        state["pos_emb.weight"] = torch.cat([state["pos_emb.weight"], torch.full((30, HIDDEN_SIZE), 9.0)])
    torch.save(state, folder / "adapter" / ATTENTION_POOL_NAME)
    return folder / "adapter", model, pooler


def save_wrapped(folder: Path, family: str = "gpt2") -> Path:
    """A model in DiffuLLaMA's layout: the decoder in a wrapper, the embedding and the head beside it."""
    save_tiny_model(folder, family)
    weights = load_file(folder / "model.safetensors")
    decoder, embedding = {"gpt2": ("transformer.", "wte"), "llama": ("model.", "embed_tokens")}[family]
    renamed = {name.replace(decoder, "denoise_model.", 1): each.clone() for name, each in weights.items()}
    table = renamed.pop(f"denoise_model.{embedding}.weight")
    torch.save(renamed | {"embed_tokens.weight": table}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder
