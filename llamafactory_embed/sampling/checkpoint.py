"""A folder with a diffusion language model → a `Sampler`: full weights or an adapter, trained here or published."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ..loading.checkpoint import LoadedDiffusionModel, load_diffusion_model
from ..loading.masked_tokens import MaskedTokenRequest
from .sampler import Sampler
from .settings import SamplingSettings


def load_sampler(
    name: str | Path,
    settings: SamplingSettings | None = None,
    *,
    mask_token: str | None = None,
    shift: bool | None = None,
    block_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "auto",
) -> Sampler:
    """Load a checkpoint by its folder or hub name, also one in DiffuLLaMA's layout. Mask token, shift and blocks are
    what it was trained with, if it says so (`masked_tokens.json`), else those of its family; `mask_token`, `shift` and
    `block_size` (0: no blocks) say otherwise."""
    if block_size is None and settings is not None:
        block_size = settings.block_size
    request = MaskedTokenRequest(mask_token, shift, block_size=block_size)
    return make_sampler(load_diffusion_model(name, request, device=device, dtype=dtype), settings)


def make_sampler(loaded: LoadedDiffusionModel, settings: SamplingSettings | None = None) -> Sampler:
    """A sampler around a loaded model; without settings it denoises greedily, by the algorithm of the model's
    family."""
    if settings is None:
        family = loaded.family
        settings = SamplingSettings() if family is None else SamplingSettings(algorithm=family.sampler)
    eos = loaded.tokenizer.eos_token_id
    return Sampler(
        loaded.model,
        loaded.tokenizer,
        dataclasses.replace(settings, block_size=loaded.settings.block_size),
        loaded.settings.mask.id,
        loaded.settings.shift,
        () if eos is None else (eos,),
        loaded.settings.sliding_window,
    )
