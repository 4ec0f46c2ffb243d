"""The option that keeps several vectors of a text, and what it cannot be combined with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .option import default_of, option


# For conditions: poolings that average the tokens that count, so that these can be vectors of their own.
AVERAGED = ("mean", "mask")

ONE_VECTOR_ONLY = (
    "both_directions",
    "same_side_negatives",
    "mixed_negatives",
    "spread_out_weight",
    "vector_weight",
    "teacher_projection",
    "quantization_aware",
)
"""Options that are about one vector a text."""


@dataclass
class MultiVectorOptions:
    """One vector a text, or several."""

    multi_vector: bool = option(
        False,
        "Keep a vector for every token that the pooling would average, and compare texts by MaxSim: all tokens "
        "(ColBERT), or with `pooling: mask` the mask tokens (DiffRetriever).",
        group="Similarity",
        when={"pooling": AVERAGED},
    )


def refuse_one_vector_options(options: Any, losses: tuple[str, ...]) -> None:
    """Refuse what needs one vector a text beside `multi_vector`; `losses` are those that take several."""
    if not options.multi_vector:
        return
    if options.pooling not in AVERAGED:
        raise ValueError(
            f"`multi_vector: true` keeps the tokens that `pooling: mean` or `mask` would average, and `pooling: "
            f"{options.pooling}` averages none: choose one of the two."
        )
    if options.contrastive_loss not in losses:
        raise ValueError(
            f"`contrastive_loss: {options.contrastive_loss}` compares one vector a text, and `multi_vector: true` "
            f"keeps one for every token: use {', '.join(losses)}."
        )
    if options.similarity == "dot" or not options.normalize_embeddings:
        raise ValueError(
            "`multi_vector: true` compares vectors of unit length: leave out `similarity: dot` and "
            "`normalize_embeddings: false`."
        )
    defaults = {field.name: default_of(field) for field in dataclasses.fields(options)}
    for name in ONE_VECTOR_ONLY:
        if getattr(options, name) != defaults[name]:
            raise ValueError(
                f"`{name}` is about one vector a text, and `multi_vector: true` keeps one for every token: leave one "
                "of the two out."
            )
