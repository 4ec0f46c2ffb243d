"""CoSENT: pairs with a higher score must be more similar (Su 2022, "CoSENT: a more effective sentence vector scheme
than Sentence-BERT")."""

from __future__ import annotations

import torch
from torch import Tensor

from .similarity import own_similarities


def cosent(first: Tensor, second: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Pairs of embeddings, each [B, d], with scores [B] → log(1 + Σ exp((cos_j - cos_i) / temperature)), over all
    i and j with score_i > score_j. Only the order of the scores matters."""
    cosines = own_similarities(first, second.unsqueeze(1), "cosine").squeeze(1)  # [B]
    return rank_pairs(cosines, scores, temperature)


def rank_pairs(similarities: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """log(1 + Σ exp((s_j - s_i) / temperature)) over all i, j with score_i > score_j; 0 if all scores are equal."""
    excess = (similarities.unsqueeze(0) - similarities.unsqueeze(1)) / temperature  # [i, j] = s_j - s_i
    ordered = scores.unsqueeze(1) > scores.unsqueeze(0)  # [i, j]: i is the better pair
    one = excess.new_zeros(1)  # log 1
    return torch.cat([excess[ordered], one]).logsumexp(dim=0)
