"""Options of every stage that predicts masked tokens: `mntp`, `ddm` and `ddm-sft`."""

from __future__ import annotations

from dataclasses import dataclass

from .option import option


@dataclass
class MaskedTokenOptions:
    """The token that hides another, and where a hidden token is predicted."""

    mask_token: str | None = option(
        None, "The token that stands for a hidden one; empty: the mask token of the model's family or tokenizer."
    )
    shift: bool | None = option(
        None, "Whether a token is predicted at the position before it; empty: as the model's family was trained."
    )
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: what suits the "
        "device, 1024 on a CPU (its caches) and 16384 elsewhere.",
        minimum=1,
    )
