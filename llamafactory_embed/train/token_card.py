"""The model card of a language model that predicts masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..model.mask_token import MaskedTokenRecord
from .card import write_card


def write_model_card(
    folder: str | Path,
    base_model: str,
    what_it_is: str,
    tags: Sequence[str],
    record: MaskedTokenRecord,
    datasets: Sequence[str],
    metrics: dict[str, float],
) -> None:
    """Write `README.md` into the checkpoint."""
    properties = {
        "attention": "bidirectional",
        "mask token": f"`{record.mask_token}`, id {record.mask_token_id}",
        "a token is predicted at": "the position before it" if record.shift else "its own position",
        "data": ", ".join(datasets) or "see the recipe",
    }
    write_card(folder, base_model, what_it_is, tags, properties, metrics)
