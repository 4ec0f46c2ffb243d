"""Options of `stage: ddm` and `stage: ddm-sft`."""

from __future__ import annotations

from dataclasses import dataclass

from .masked_tokens import MaskedTokenOptions


@dataclass
class DiffusionOptions(MaskedTokenOptions):
    """Corruption and loss of a diffusion language model."""


@dataclass
class DiffusionTuningOptions(DiffusionOptions):
    """What `ddm-sft` adds: instructions and answers."""
