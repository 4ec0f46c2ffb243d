"""Losses of scored pairs: a pair with a higher score must be more similar. Only the order of the scores matters."""

from __future__ import annotations

import torch
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from ..gather import gather
from .rows import EmbeddedRows, own_similarities


def cosent(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """CoSENT (Su 2022, "CoSENT: a more effective sentence vector scheme than Sentence-BERT"): `rank_pairs` by cosines,
    over the pairs of all ranks, []."""
    first, second, scores = pairs_of_all_ranks(rows)
    cosines = own_similarities(first, second.unsqueeze(1), "cosine").squeeze(1)  # [P]
    return rank_pairs(cosines, scores, options.loss_temperature)


def angle(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """AnglE (Li and Li 2023, "AnglE-optimized Text Embeddings"): `rank_pairs` by an angle in complex space, which does
    not go flat where the cosine does, over the pairs of all ranks, [].

    The paper adds it to CoSENT's and an in-batch loss; this is the angle's term alone.
    """
    first, second, scores = pairs_of_all_ranks(rows)
    return rank_pairs(angle_similarity(first, second), scores, options.loss_temperature)


def pairs_of_all_ranks(rows: EmbeddedRows) -> tuple[Tensor, Tensor, Tensor]:
    """The two texts of each pair, [P, d] and [P, d], and its score [P]."""
    assert rows.scores is not None
    return gather(rows.queries), gather(rows.passages[:, 0]), gather(rows.scores[:, 0])


def rank_pairs(similarities: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """log(1 + Σ exp((s_j - s_i) / temperature)) over all i, j with score_i > score_j; 0 if all scores are equal."""
    excess = (similarities.unsqueeze(0) - similarities.unsqueeze(1)) / temperature  # [i, j] = s_j - s_i
    ordered = scores.unsqueeze(1) > scores.unsqueeze(0)  # [i, j]: i is the better pair
    one = excess.new_zeros(1)  # log 1
    return torch.cat([excess[ordered], one]).logsumexp(dim=0)


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
