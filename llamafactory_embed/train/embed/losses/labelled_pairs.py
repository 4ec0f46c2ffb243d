"""Losses of pairs with a score or a label, one pair a row, and of triplets."""

from __future__ import annotations

import torch
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from .ranking import pairs_of_all_ranks
from .rows import EmbeddedRows, own_similarities


def mse(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """Regression: the square of how far the cosine of a pair is from its score, [B]."""
    assert rows.scores is not None
    cosines = own_similarities(rows.queries, rows.passages[:, :1], "cosine")  # [B, 1]
    return (cosines - rows.scores[:, :1].to(cosines.dtype)).square().squeeze(1)


def pairs(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """The contrastive loss of Hadsell et al. 2006, halved as theirs: pairs labelled 1 are drawn together, pairs
    labelled 0 driven apart up to the margin, [B]. Distances are 1 - cosine."""
    assert rows.scores is not None
    distances, labels = _distances(rows.queries, rows.passages[:, 0]), _labels(rows.scores[:, 0])
    apart = (options.pair_margin - distances).clamp_min(0)
    return (labels * distances.square() + (1 - labels) * apart.square()) / 2


def online_pairs(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """The same for hard pairs alone, over the pairs of all ranks, and as a sum, []: those labelled 1 that are further
    apart than the closest pair labelled 0, and those labelled 0 that are closer than the furthest labelled 1."""
    first, second, scores = pairs_of_all_ranks(rows)
    distances, labels = _distances(first, second), _labels(scores)
    apart, together = distances[labels == 0], distances[labels == 1]
    too_close = apart[apart < (together.max() if len(together) else apart.mean())]
    too_far = together[together > (apart.min() if len(apart) else together.mean())]
    return too_far.square().sum() + (options.pair_margin - too_close).clamp_min(0).square().sum()


def triplet(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """How far a query's positive is from being nearer than each of its negatives by the margin, the mean over the K
    negatives, [B] (Schroff et al. 2015). Distances are 1 - cosine."""
    cosines = own_similarities(rows.queries, rows.passages, "cosine")  # [B, 1 + K]
    return (cosines[:, 1:] - cosines[:, :1] + options.pair_margin).clamp_min(0).mean(dim=1)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return 1 - own_similarities(first, second.unsqueeze(1), "cosine").squeeze(1)


def _labels(scores: Tensor) -> Tensor:
    """Scores that must be labels."""
    if not bool(((scores == 0) | (scores == 1)).all()):
        wrong = scores[(scores != 0) & (scores != 1)][0]
        raise ValueError(
            f"`contrastive_loss: pairs` and `online_pairs` need the labels 0 and 1 as `score`, not {float(wrong)}: "
            "use `mse` or `cosent` for other scores."
        )
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
