"""AnglE: CoSENT's ranking with an angle in complex space, which does not go flat where the cosine does
(Li and Li 2023, "AnglE-optimized Text Embeddings")."""

from __future__ import annotations

import torch
from torch import Tensor

from .cosent import rank_pairs


def angle(first: Tensor, second: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Pairs of embeddings, each [B, d], with scores [B] → the ranking loss of `cosent` on `angle_similarity`.

    The paper adds it to CoSENT's and an in-batch loss; this is the angle's term alone.
    """
    return rank_pairs(angle_similarity(first, second), scores, temperature)


def angle_similarity(first: Tensor, second: Tensor) -> Tensor:
    """|Σ Re + Σ Im| of z w̄ / (|z| |w|) for pairs of embeddings [B, d] read as complex vectors z, w of size d / 2, [B].

    The first half of an embedding holds the real parts, the second the imaginary parts. The value grows with
    similarity (1 for equal vectors), as in the authors' program and in sentence-transformers; the paper's text, which
    speaks of an angle difference, has it the other way round.
    """
    if first.shape[-1] % 2:
        raise ValueError(
            f"`contrastive_loss: angle` needs embeddings of an even size, not {first.shape[-1]}: they are read as "
            "complex numbers."
        )
    dtype = torch.promote_types(first.dtype, torch.float32)
    real, imaginary = first.to(dtype).chunk(2, dim=-1)  # z = a + bi
    other_real, other_imaginary = second.to(dtype).chunk(2, dim=-1)  # w = c + di
    quotient_real = (real * other_real + imaginary * other_imaginary).sum(dim=-1)  # Σ ac + bd
    quotient_imaginary = (imaginary * other_real - real * other_imaginary).sum(dim=-1)  # Σ bc - ad
    lengths = first.to(dtype).norm(dim=-1) * second.to(dtype).norm(dim=-1)
    return ((quotient_real + quotient_imaginary) / lengths.clamp_min(torch.finfo(dtype).tiny)).abs()
