"""What a positive has to beat: candidates of one kind, which of them are left out, and the sum of their exponentials.

The sum can be taken tile by tile, so that no tensor of all anchors by all candidates is ever held. Tiles are computed
again in the backward pass; value and gradient are those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ....hparams.contrastive import ContrastiveOptions
from ....model.vector_sets import Texts, compare
from .rows import for_similarity


Hardness = Literal["hard_negatives", "in_batch_negatives", "all_negatives"]


@dataclass(frozen=True)
class Rules:
    """Which candidates are left out, and how much the others count."""

    temperature: float
    margin: float | None = None
    """Left out are candidates that are more similar than the positive by more than this."""
    masks_own: bool = False
    """Whether that can happen to the own row's candidates too."""
    guide_margin: float = 0.0
    guide_margin_is_relative: bool = False
    hardness: float = 0.0
    hardness_of: Hardness = "hard_negatives"
    tile: int | None = None

    @classmethod
    def of(cls, options: ContrastiveOptions) -> Rules:
        """The rules of a recipe."""
        return cls(
            temperature=options.loss_temperature,
            margin=options.false_negative_margin,
            masks_own=options.mask_own_negatives,
            guide_margin=options.guide_margin,
            guide_margin_is_relative=options.guide_margin_kind == "relative",
            hardness=options.hardness_strength,
            hardness_of=options.hardness_of,
            tile=options.candidate_tile,
        )


@dataclass(frozen=True)
class Goals:
    """What each of B anchors has to find, and what is known of it."""

    rows: Tensor  # [B] the row of each anchor among those of the candidates
    similarities: Tensor  # [B] of the anchor's query and the text to find
    ids: Tensor | None = None  # [B] of the text to find
    own_only: Tensor | None = None  # [B] bool, anchors that are compared with their own row's candidates alone
    guide_similarities: Tensor | None = None  # [B] the same similarities as the guide has them

    def split(self, size: int) -> Iterator[Goals]:
        """The goals of `size` anchors at a time."""
        parts = [
            [None] * -(-len(self.rows) // size) if each is None else each.split(size)
            for each in (self.rows, self.similarities, self.ids, self.own_only, self.guide_similarities)
        ]
        for part in zip(*parts, strict=True):
            yield Goals(*part)


@dataclass(frozen=True)
class Anchors:
    """B texts that candidates are compared with, of unit length where similarity is a cosine."""

    embeddings: Texts
    guide: Tensor | None = None  # [B, g]

    def split(self, size: int) -> Iterator[Anchors]:
        """`size` anchors at a time."""
        guides = self._guides(size)
        for embeddings, guide in zip(self.embeddings.split(size), guides, strict=True):
            yield Anchors(embeddings, guide)

    def _guides(self, size: int) -> list[Tensor | None]:
        if self.guide is None:
            return [None] * -(-len(self.embeddings) // size)
        return list(self.guide.split(size))


@dataclass(frozen=True)
class Rivals:
    """N texts of one kind."""

    embeddings: Texts  # of N texts
    rows: Tensor  # [N] the row that each belongs to
    not_for_own: Tensor  # [N] bool, whether it is left out for its own row: there it is the text to find, or no rival
    ids: Tensor | None = None  # [N]
    guide: Tensor | None = None  # [N, g]
    can_be_hard: bool = True  # whether `Rules.hardness` is about them

    def split(self, size: int) -> Iterator[Rivals]:
        """`size` candidates at a time; one split of the embeddings, whose gradient is put together once."""
        count = -(-len(self.rows) // size)
        ids = [None] * count if self.ids is None else self.ids.split(size)
        guides = [None] * count if self.guide is None else self.guide.split(size)
        parts = (self.embeddings.split(size), self.rows.split(size), self.not_for_own.split(size), ids, guides)
        for embeddings, rows, not_for_own, own_ids, guide in zip(*parts, strict=True):
            yield Rivals(embeddings, rows, not_for_own, own_ids, guide, self.can_be_hard)


def log_sum(anchors: Anchors, candidates: Rivals, goals: Goals, rules: Rules) -> Tensor:
    """log Σ exp(logit) over the candidates of each anchor, [B]; very low for anchors that have none."""
    if rules.tile is None:
        return log_sum_at_once(anchors, candidates, goals, rules)
    tiles = list(candidates.split(rules.tile))
    sums = []
    for some, their_goals in zip(anchors.split(rules.tile), goals.split(rules.tile), strict=True):
        parts = [
            checkpoint(log_sum_at_once, some, tile, their_goals, rules, use_reentrant=False, preserve_rng_state=False)
            for tile in tiles
        ]
        sums.append(torch.stack(parts, dim=1).logsumexp(dim=1))
    return torch.cat(sums)


def log_sum_at_once(anchors: Anchors, candidates: Rivals, goals: Goals, rules: Rules) -> Tensor:
    """The same over one matrix [B, N]."""
    similarities = compare(anchors.embeddings, candidates.embeddings)  # [B, N]
    is_own = candidates.rows == goals.rows.unsqueeze(1)
    left_out = is_own & candidates.not_for_own
    if goals.ids is not None and candidates.ids is not None:
        left_out |= candidates.ids == goals.ids.unsqueeze(1)
    if goals.own_only is not None:
        left_out |= ~is_own & goals.own_only.unsqueeze(1)
    too_similar = _too_similar(similarities, anchors, candidates, goals, rules)
    if too_similar is not None:
        left_out |= too_similar if rules.masks_own else too_similar & ~is_own
    logits = similarities / rules.temperature
    if rules.hardness and candidates.can_be_hard:
        raised = {"hard_negatives": is_own, "in_batch_negatives": ~is_own}.get(rules.hardness_of)
        extra = rules.hardness * similarities.detach()
        logits = logits + (extra if raised is None else extra * raised)
    return logits.masked_fill(left_out, lowest(logits)).logsumexp(dim=1)


def _too_similar(
    similarities: Tensor, anchors: Anchors, candidates: Rivals, goals: Goals, rules: Rules
) -> Tensor | None:
    """Rivals that are probably right answers, by the model's own similarities or by the guide's, [B, N]."""
    found: Tensor | None = None
    if rules.margin is not None:
        found = similarities > (goals.similarities + rules.margin).unsqueeze(1)
    if anchors.guide is not None and candidates.guide is not None:
        assert goals.guide_similarities is not None
        own = goals.guide_similarities
        limits = own - rules.guide_margin * (own.abs() if rules.guide_margin_is_relative else 1)
        with torch.autocast(device_type=own.device.type, enabled=False):
            by_guide = anchors.guide @ candidates.guide.T > limits.unsqueeze(1)
        found = by_guide if found is None else found | by_guide
    return found


def lowest(logits: Tensor) -> float:
    """A logit whose exponential is 0 beside any other; finite, so that a row of nothing else has a gradient of 0."""
    return torch.finfo(logits.dtype).min / 4


def unit(embeddings: Tensor) -> Tensor:
    """Embeddings of unit length, which a guide compares by cosines."""
    return for_similarity(embeddings, "cosine")
