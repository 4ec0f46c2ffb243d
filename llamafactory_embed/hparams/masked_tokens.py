"""Options of every stage that predicts masked tokens: `mntp`, `ddm` and `ddm-sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .option import option


@dataclass
class MaskedTokenOptions:
    """The token that hides another, and where a hidden token is predicted."""

    mask_token: str | None = option(
        None,
        "Token that hides others: blank (the token `_`), eos, mask (the tokenizer's mask token, or a new one that is "
        "trained and saved), or any text that is one token; empty: that of the checkpoint or model family.",
    )
    shift: bool | None = option(
        None, "Predict a token at the position before it; empty: as the model family was trained.", group="Model"
    )
    sliding_window: Literal["keep", "ignore"] = option(
        "keep",
        "Sliding window of models like Mistral: keep it, on both sides, or ignore it and attend to the whole text.",
        group="Model",
    )
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens of one forward; a larger batch runs as several forwards of one step. Empty: 4096 on a CPU, "
        "16384 elsewhere.",
        minimum=1,
        group="Memory and length of the run",
    )


@dataclass
class DocumentOptions:
    """How the texts of a data set become documents."""

    line_by_line: bool = option(False, "Make every line of a text a document.")
