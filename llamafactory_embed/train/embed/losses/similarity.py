"""Similarities between embeddings, always in full precision."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


Similarity = Literal["cosine", "dot"]
Reduction = Literal["mean", "none"]


def similarity_matrix(queries: Tensor, candidates: Tensor, similarity: Similarity) -> Tensor:
    """Every query [B, d] against every candidate [N, d] → [B, N]."""
    queries, candidates = prepare(queries, similarity), prepare(candidates, similarity)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return queries @ candidates.T


def own_similarities(queries: Tensor, passages: Tensor, similarity: Similarity) -> Tensor:
    """Each query [B, d] against its own passages [B, K, d] → [B, K]."""
    queries, passages = prepare(queries, similarity), prepare(passages, similarity)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return (passages @ queries.unsqueeze(-1)).squeeze(-1)


def prepare(embeddings: Tensor, similarity: Similarity) -> Tensor:
    """Embeddings in at least float32, unit length where cosines are wanted: bfloat16 has 3 digits, and similarities
    are divided by temperatures as small as 0.002."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return F.normalize(embeddings, dim=-1) if similarity == "cosine" else embeddings


def reduce_rows(losses: Tensor, reduction: Reduction) -> Tensor:
    """One loss a row [B] → their mean, or as they are."""
    return losses.mean() if reduction == "mean" else losses
