"""Options of `stage: mntp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .masked_tokens import DocumentOptions, MaskedTokenOptions
from .option import option
from .run import RunOptions, TokenBudgetOptions


@dataclass
class MntpOptions(RunOptions, TokenBudgetOptions, DocumentOptions, MaskedTokenOptions):
    """What is hidden, and how."""

    mlm_probability: float = option(0.2, "Share of tokens to hide and predict; LLM2Vec uses 0.2, and 0.8 for Mistral.")
    masking: Literal["bert", "all_mask", "random_span"] = option(
        "bert",
        "bert: of the hidden tokens, 80 % become the mask token, 10 % a random token, 10 % stay; all_mask: all become "
        "the mask token; random_span: spans of adjacent tokens become the mask token.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"`mlm_probability` must lie between 0 and 1, both excluded, not {self.mlm_probability}.")
