"""PiSSA (Meng et al. 2024, arXiv 2404.02948): saved as an ordinary adapter, because nobody keeps the changed base.

PiSSA takes the largest singular vectors out of the base model's matrices and lets them learn as a LoRA adapter:
`W = W' + s B₀A₀`, and `W' + s BA` after the training. An adapter that holds A and B only needs W' again, which PEFT
computes anew when it loads the adapter: with `pissa_iter` other than -1 from new random numbers, so that another model
is served than was trained. Here the difference is saved instead, `W' + s BA = W + s (BA - B₀A₀)`, as an adapter of
twice the rank that works on the unchanged base model wherever adapters are loaded. (PEFT can convert it as well, but
leaves out what an adapter holds beyond A and B: DoRA's magnitudes and `additional_target`.)
"""

from __future__ import annotations

import copy
from pathlib import Path
from unittest import mock

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn


START = "pissa_start"  # attribute of a PeftModel
A, B = ".lora_A.", ".lora_B."


def remember_start(backbone: PeftModel) -> None:
    """Keep A₀ and B₀ of a new adapter, which are needed to save it."""
    config = backbone.peft_config[backbone.active_adapters[0]]
    if str(getattr(config, "init_lora_weights", None)).startswith("pissa"):
        state = backbone.state_dict()
        setattr(backbone, START, {name: each.cpu().clone() for name, each in state.items() if A in name or B in name})


def start_of(backbone: nn.Module) -> dict[str, Tensor] | None:
    """A₀ and B₀, by their names in the model; None without PiSSA."""
    return getattr(backbone, START, None)


def save_as_lora(backbone: PeftModel, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as one of twice the rank on the unchanged base model."""
    start = start_of(backbone)
    assert start is not None
    state = dict(backbone.state_dict() if state_dict is None else state_dict)
    for name, before in start.items():
        learned = state[name].detach().cpu()
        before = before.to(learned.dtype)
        state[name] = torch.cat([learned, before]) if A in name else torch.cat([learned, -before], dim=1)
    adapter = backbone.active_adapters[0]
    with mock.patch.dict(backbone.peft_config, {adapter: _of_twice_the_rank(backbone.peft_config[adapter])}):
        backbone.save_pretrained(str(folder), state_dict=state)


def undo_conversion(backbone: PeftModel, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The saved adapter as A and B of a model with PiSSA. Where the model's own A₀ and B₀ are others than the saved
    ones (they were drawn again), what is left of its matrices is changed to fit the saved ones."""
    start = start_of(backbone)
    assert start is not None
    adapter = backbone.active_adapters[0]
    saved = dict(saved)
    for name_a in [name for name in start if A in name]:
        name_b = name_a.replace(A, B)
        saved_a, saved_b = (name.replace(f".{adapter}.", ".") for name in (name_a, name_b))
        if saved[saved_a].shape == start[name_a].shape:
            continue  # saved by a release that did not convert
        learned_a, start_a = saved[saved_a].chunk(2)
        learned_b, start_b = saved[saved_b].chunk(2, dim=1)
        if not (torch.equal(start_a, start[name_a]) and torch.equal(-start_b, start[name_b])):
            layer = backbone.get_submodule(name_a.partition(A)[0])
            _add(layer, adapter, start[name_b] @ start[name_a] + start_b @ start_a)
            start |= {name_a: start_a.clone(), name_b: -start_b}
        saved |= {saved_a: learned_a.contiguous(), saved_b: learned_b.contiguous()}
    return saved


def _of_twice_the_rank(config: LoraConfig) -> LoraConfig:
    """The configuration of the converted adapter, whose scaling is the same."""
    growth = 2**0.5 if config.use_rslora else 2  # alpha is divided by the rank, or by its root
    converted = copy.copy(config)
    converted.init_lora_weights = True
    converted.r = 2 * config.r
    converted.lora_alpha = growth * config.lora_alpha
    converted.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    converted.alpha_pattern = {name: growth * alpha for name, alpha in (config.alpha_pattern or {}).items()}
    return converted


def _add(layer: nn.Module, adapter: str, product: Tensor) -> None:
    """Add `s` times a product of B and A, [out, in], to the matrix below the adapter."""
    weight: Tensor = layer.get_base_layer().weight
    change = layer.scaling[adapter] * (product.T if layer.fan_in_fan_out else product)
    with torch.no_grad():
        weight.copy_(weight.float() + change.to(weight.device))
