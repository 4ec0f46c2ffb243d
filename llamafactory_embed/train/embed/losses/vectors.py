"""Losses of embeddings by themselves: near a teacher's vectors, and spread out over the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from ..gather import gather
from .rows import EmbeddedRows, for_similarity


def vector_distillation(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """The mean distance of a row's texts to the vectors that a teacher has for them, [B] (EmbedDistill; jina-v5,
    EmbeddingGemma)."""
    assert rows.teacher_vectors is not None
    return vector_distances(taught_texts(rows), rows.teacher_vectors, options.vector_distance).mean(dim=1)


def taught_texts(rows: EmbeddedRows) -> Tensor:
    """The embeddings of the texts that have a teacher's vector, [B, T, d]: the query and the first passages."""
    assert rows.teacher_vectors is not None
    texts = torch.cat([rows.queries.unsqueeze(1), rows.passages], dim=1)
    return texts[:, : rows.teacher_vectors.shape[1]]


def vector_distances(texts: Tensor, vectors: Tensor, distance: str) -> Tensor:
    """1 - cosine, or the mean square over the numbers of a vector, of texts and vectors [B, T, d], or how far their
    similarities lie apart → [B, T]."""
    if distance == "similarities":
        return similarity_differences(texts.flatten(0, 1), vectors.flatten(0, 1)).unflatten(0, texts.shape[:2])
    if texts.shape[-1] != vectors.shape[-1]:
        raise ValueError(
            f"The teacher's vectors have {vectors.shape[-1]} numbers and embeddings {texts.shape[-1]}: set "
            "`teacher_projection: true`, or `vector_distance: similarities`."
        )
    vectors = vectors.to(texts.dtype)
    if distance == "mse":
        return (texts - vectors).square().mean(dim=-1)
    return 1 - F.cosine_similarity(texts, vectors, dim=-1)


def similarity_differences(texts: Tensor, vectors: Tensor) -> Tensor:
    """The mean squared difference between a text's cosines with the other texts of all ranks, and those of a teacher's
    vectors: [N, d] and [N, d'] → [N]. What is taught is who is near to whom, so that sizes may differ."""
    own, taught = (for_similarity(each, "cosine") for each in (texts, vectors.to(texts.dtype)))
    everyone, everyone_taught = (for_similarity(gather(each), "cosine") for each in (texts, vectors.to(texts.dtype)))
    with torch.autocast(device_type=own.device.type, enabled=False):
        squares = (own @ everyone.T - taught @ everyone_taught.T).square()  # [N, P]; 0 with itself
    return squares.sum(dim=1) / max(squares.shape[1] - 1, 1)


def spread_out(rows: EmbeddedRows) -> Tensor:
    """The mean squared cosine of each query with other rows' queries, and of each positive with other positives, [B]:
    the second moment of the global orthogonal regularizer (Zhang et al. 2017; EmbeddingGemma, jina-v5). Over the rows
    of all ranks, and without a matrix of all pairs: Σ_j (x_i · x_j)² = x_i' (Σ_j x_j x_j') x_i.
    """
    return sum_of_squares(rows.queries) + sum_of_squares(rows.passages[:, 0])


def sum_of_squares(embeddings: Tensor) -> Tensor:
    """The mean squared cosine of each of the embeddings [B, d] with the others of all ranks, [B]."""
    units = for_similarity(embeddings, "cosine")
    everyone = for_similarity(gather(embeddings), "cosine")  # [P, d]
    with torch.autocast(device_type=units.device.type, enabled=False):
        moments = everyone.T @ everyone  # [d, d]
        squares = ((units @ moments) * units).sum(dim=1) - units.square().sum(dim=1).square()  # without itself
    return squares / max(len(everyone) - 1, 1)
