"""Weights of the language model inside one of our modules: an adapter or all of them, in the layout that transformers
and PEFT load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor


ADAPTER_NAME = "adapter_model.safetensors"


def save_backbone(backbone: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write it. `state_dict` is that of the module around it where an engine (FSDP, ZeRO-3) had to collect it."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder, state_dict=part_of_state_dict(state_dict, "backbone."))


def load_backbone_weights(backbone: Any, folder: Path) -> None:
    """Put saved weights into a language model of the same shape."""
    if isinstance(backbone, PeftModel):
        adapter = backbone.active_adapters[0]
        set_peft_model_state_dict(backbone, load_file(folder / ADAPTER_NAME), adapter_name=adapter)
    else:
        saved = type(backbone).from_pretrained(folder, dtype=backbone.dtype)
        backbone.load_state_dict(saved.state_dict())


def part_of_state_dict(state_dict: dict[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """The entries of one module, by the names it knows them by."""
    if state_dict is None:
        return None
    return {name.removeprefix(prefix): each for name, each in state_dict.items() if name.startswith(prefix)}
