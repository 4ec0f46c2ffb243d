"""Options of `stage: mntp`."""

from __future__ import annotations

from dataclasses import dataclass

from .masked_tokens import MaskedTokenOptions


@dataclass
class MntpOptions(MaskedTokenOptions):
    """What is hidden, and how."""
