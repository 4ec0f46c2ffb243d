"""Options of losses that current recipes need: which candidates take part and with what weight, and what is added."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .option import default_of, option
from .relevance import ON


@dataclass
class CandidateOptions:
    """Among what `info_nce` looks for the positive, and how much each of it counts."""

    same_side_negatives: bool = option(
        False,
        "Also compare a query with other rows' queries, and its positive with other rows' documents, in one softmax "
        "(info_nce).",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    mask_own_negatives: bool = option(
        False,
        "`false_negative_margin` and `guide_model` may leave out a row's own hard negatives, too (info_nce).",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    guide_model: str | None = option(
        None,
        "A trained embedder whose similarities say which candidates are false negatives (GISTEmbed, info_nce); empty: "
        "none.",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    guide_margin: float = option(
        0.0,
        "Leave out candidates that the guide finds more similar to the query than the positive less this margin.",
        minimum=0.0,
        group="Negatives",
        when={"contrastive_loss": ("info_nce",), "guide_model": ON},
    )
    guide_margin_kind: Literal["absolute", "relative"] = option(
        "absolute",
        "Whether `guide_margin` is a similarity, or a share of the positive's.",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",), "guide_model": ON},
    )
    hardness_strength: float = option(
        0.0,
        "Raise the logits of negatives by this times their similarity, which carries no gradient (info_nce); "
        "EmbeddingGemma: 5; 0: off.",
        minimum=0.0,
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    hardness_of: Literal["hard_negatives", "in_batch_negatives", "all_negatives"] = option(
        "hard_negatives",
        "Which negatives `hardness_strength` raises: a row's own, those of other rows, or all.",
        group="Negatives",
        when={"contrastive_loss": ("info_nce",), "hardness_strength": ON},
    )
    focal_gamma: float = option(
        0.0,
        "Multiply a row's loss by (1 - probability of its positive) to this power, as KaLM-V2 does (info_nce); 0: "
        "off.",
        minimum=0.0,
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    mixed_negatives: int = option(
        0,
        "Hard negatives of a row that are made by mixing the embeddings of two of its own (info_nce); 0: none.",
        minimum=0,
        group="Negatives",
        when={"contrastive_loss": ("info_nce",)},
    )
    candidate_tile: int | None = option(
        None,
        "Compare so many anchors with so many candidates at a time, and compute the similarities again in the "
        "backward pass (info_nce); empty: all at once.",
        minimum=1,
        group="Memory and length of the run",
        when={"contrastive_loss": ("info_nce",)},
    )


@dataclass
class TermOptions:
    """Margins of losses over pairs, and terms that are added to any loss."""

    pair_margin: float = option(
        0.5,
        "Distance (1 - similarity) beyond which a pair labelled 0 (pairs, online_pairs) or a negative (triplet, "
        "counted from the positive) costs nothing.",
        minimum=0.0,
        group="Similarity",
        when={"contrastive_loss": ("pairs", "online_pairs", "triplet")},
    )
    spread_out_weight: float = option(
        0.0,
        "Weight of the spread-out regularizer: the mean squared cosine of different queries and of different "
        "positives; jina-v5: 1; 0: off.",
        minimum=0.0,
        group="Similarity",
    )
    vector_weight: float = option(
        0.0,
        "Weight of the distance to a teacher's vectors (vector_distillation) that is added to the loss, for rows that "
        "bring them; 0: off.",
        minimum=0.0,
        group="Teacher's vectors",
    )
    vector_distance: Literal["cosine", "mse", "similarities"] = option(
        "cosine",
        "Distance to a teacher's vector: 1 - cosine, or the mean square over its numbers; similarities: between the "
        "batch's cosines and the teacher's.",
        group="Teacher's vectors",
        when=[{"vector_weight": ON}, {"contrastive_loss": ("vector_distillation",)}],
    )
    teacher_projection: bool = option(
        False,
        "Learn a linear map from embeddings to the teacher's vectors; it is needed where their sizes differ.",
        group="Teacher's vectors",
    )
    teacher_projection_lr: float | None = option(
        None,
        "Learning rate of the linear map; empty: that of the recipe.",
        minimum=1e-9,
        group="Teacher's vectors",
        when={"teacher_projection": ON},
    )


INFO_NCE = ("info_nce",)

READ_BY: dict[str, tuple[str, ...]] = {
    "same_side_negatives": INFO_NCE,
    "mask_own_negatives": INFO_NCE,
    "guide_model": INFO_NCE,
    "hardness_strength": INFO_NCE,
    "focal_gamma": INFO_NCE,
    "mixed_negatives": INFO_NCE,
    "candidate_tile": INFO_NCE,
    "kl_weight": INFO_NCE,
    "pair_margin": ("pairs", "online_pairs", "triplet"),
}
"""Option → the losses that read it."""


def unread_options(options: Any) -> list[str]:
    """Options that are set although the loss would not read them."""
    defaults = {field.name: default_of(field) for field in dataclasses.fields(options)}
    return [
        name
        for name, losses in READ_BY.items()
        if options.contrastive_loss not in losses and getattr(options, name) != defaults[name]
    ]


def refuse_contradictory_terms(options: Any) -> None:
    """Refuse options that have no effect together, or that contradict each other."""
    loss = options.contrastive_loss
    for name in unread_options(options):
        if name != "kl_weight":  # which has a sentence of its own
            raise ValueError(
                f"`{name}` belongs to `contrastive_loss: {' or '.join(READ_BY[name])}`, not to {loss}: change the "
                f"loss, or leave `{name}` out."
            )
    if options.same_side_negatives and options.both_directions:
        raise ValueError(
            "`same_side_negatives` puts all candidates into one softmax, and `both_directions` averages two: leave "
            "one of them out."
        )
    if options.mask_own_negatives and options.false_negative_margin is None and options.guide_model is None:
        raise ValueError("`mask_own_negatives` needs `false_negative_margin` or `guide_model`, which leave out texts.")
    for name in ("guide_margin", "guide_margin_kind"):
        if options.guide_model is None and getattr(options, name) != getattr(CandidateOptions, name):
            raise ValueError(f"`{name}` belongs to `guide_model`: name the guide, or leave `{name}` out.")
    if options.mixed_negatives and options.num_negatives < 2:
        raise ValueError(
            "`mixed_negatives` mixes two hard negatives of a row: set `num_negatives` to at least 2, or leave it out."
        )
    needs_negatives = options.hardness_of == "hard_negatives" and options.num_negatives < 1
    if options.hardness_strength and needs_negatives:
        raise ValueError(
            "`hardness_strength` raises a row's own hard negatives: set `num_negatives` to at least 1, or "
            "`hardness_of: in_batch_negatives`."
        )
    if options.matryoshka_dims and loss == "vector_distillation":
        raise ValueError(
            "`vector_distillation` compares whole embeddings with a teacher's vectors: leave `matryoshka_dims` out, "
            "or set `vector_weight` beside another loss."
        )
    if options.teacher_projection and options.vector_distance == "similarities":
        raise ValueError(
            "`vector_distance: similarities` compares vectors of any sizes: leave `teacher_projection` out."
        )
    if options.vector_weight and loss == "vector_distillation":
        raise ValueError(
            "`vector_weight` adds `vector_distillation` to another loss: leave it out where that is the loss."
        )


def check_matryoshka_weights(dims: list[int] | None, weights: list[float] | None) -> None:
    """There must be a weight for each size, and one above 0."""
    if weights is None:
        return
    if dims is None:
        raise ValueError("`matryoshka_weights` are the weights of `matryoshka_dims`: name the sizes, too.")
    if len(weights) != len(dims):
        raise ValueError(f"`matryoshka_weights` has {len(weights)} numbers for {len(dims)} `matryoshka_dims`.")
    if min(weights) < 0 or max(weights) <= 0:
        raise ValueError(f"`matryoshka_weights` must be at least 0, and one of them above, not {weights}.")
