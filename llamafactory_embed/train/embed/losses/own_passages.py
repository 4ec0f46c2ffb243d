"""Losses in which a query sees only its own positive and hard negatives, never another row's passages."""

from __future__ import annotations

import torch
from torch import Tensor

from .similarity import Reduction, Similarity, own_similarities, reduce_rows


def own_passages_loss(
    queries: Tensor,
    passages: Tensor,
    *,
    temperature: float,
    similarity: Similarity = "cosine",
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy of queries [B, d] over their own passages [B, 1 + K, d], of which the first one is the positive.

    What tDRO measures tasks with: losses of rows of different tasks must not depend on which tasks share the batch.
    """
    scores = own_similarities(queries, passages, similarity) / temperature  # [B, 1 + K]
    return reduce_rows(-scores.log_softmax(dim=1)[:, 0], reduction)


def repllama(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    divide_by_dimension: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of RepLLaMA (Ma et al. 2023) as the Diffusion Embedder trains with it: dot products of unnormalized
    queries [B, d], positives [B, d] and own negatives [B, K, d], no temperature.

    `divide_by_dimension` divides the dot products by d, without which they saturate the softmax at the start.
    """
    passages = torch.cat([positives.unsqueeze(1), negatives], dim=1)  # [B, 1 + K, d]
    temperature = float(queries.shape[-1]) if divide_by_dimension else 1.0
    return own_passages_loss(queries, passages, temperature=temperature, similarity="dot", reduction=reduction)
