"""From the network's logits to one guess a position and its confidence: pure functions over [N, V]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


LIKELY_TOKENS = 1024  # the most probable ones, which top-p tries first


@dataclass(frozen=True)
class Guesses:
    """What N positions would become if they were revealed now."""

    tokens: Tensor  # [N]
    plain: Tensor  # [N, V] log-probabilities before temperature, top-p and top-k
    filtered: Tensor  # [N, V] log-probabilities after them


def make_guesses(
    logits: Tensor,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    uniforms: Tensor | None = None,
    banned: Tensor | None = None,
) -> Guesses:
    """Guess a token for each row of logits [N, V]: the most probable one at temperature 0, otherwise the one that a
    uniform number [N] picks from the distribution.

    `banned` tokens (the mask itself) are never guessed. They keep their share of the probability, as in the original
    samplers: where the mask would win, the network's confidence is low.
    """
    logits = logits.float()
    plain = logits.log_softmax(dim=-1)
    tempered = logits / temperature if temperature > 0 else logits
    # top-p first, then top-k, as in Dream
    filtered = keep_top_k(keep_top_p(tempered, top_p), top_k).log_softmax(dim=-1)
    allowed = without(filtered, banned)
    # where nothing but banned tokens survived the filters, the filters do not count
    allowed = torch.where(allowed.isneginf().all(dim=-1, keepdim=True), without(plain, banned), allowed)
    if temperature <= 0:
        return Guesses(allowed.argmax(dim=-1), plain, filtered)
    if uniforms is None:
        raise ValueError("A `temperature` above 0 needs a uniform number for each position.")
    return Guesses(draw_tokens(allowed, uniforms), plain, filtered)


def without(log_probabilities: Tensor, banned: Tensor | None) -> Tensor:
    """Log-probabilities with minus infinity at the banned tokens."""
    if banned is None or len(banned) == 0:
        return log_probabilities
    return log_probabilities.index_fill(-1, banned.to(log_probabilities.device), float("-inf"))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Drop a token if the more probable ones already add up to more than `top_p`."""
    if top_p >= 1:
        return logits
    # Sorting a whole vocabulary takes a CPU longer than a small network's forward. Most rows keep a few tokens.
    likely, tokens = logits.topk(min(LIKELY_TOKENS, logits.shape[-1]), dim=-1)  # from the most probable on
    summed = (likely - logits.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    unfinished = (summed[..., -1] <= top_p).nonzero(as_tuple=True)
    before = torch.cat([torch.zeros_like(summed[..., :1]), summed[..., :-1]], dim=-1)
    kept = torch.full_like(logits, float("-inf"))
    kept.scatter_(-1, tokens, likely.masked_fill(before > top_p, float("-inf")))
    kept[unfinished] = _keep_top_p_of_all(logits[unfinished], top_p)
    return kept


def _keep_top_p_of_all(logits: Tensor, top_p: float) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    summed = ordered.softmax(dim=-1).cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(summed[..., :1]), summed[..., :-1]], dim=-1)
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
    return logits.masked_fill(dropped, float("-inf"))


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Drop logits below the k-th largest; 0 keeps all."""
    if top_k < 1 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def draw_tokens(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row [N, V] with one uniform number a row [N], through the inverse of the cumulative
    distribution: a single draw serves any vocabulary, so a text does not depend on the device."""
    summed = log_probabilities.double().exp().cumsum(dim=-1)  # doubles: 150,000 small numbers are added up
    targets = uniforms.to(summed).unsqueeze(-1) * summed[..., -1:]
    return torch.searchsorted(summed, targets, right=True).squeeze(-1).clamp(max=summed.shape[-1] - 1)


def penalize_repetition(logits: Tensor, present: Tensor, penalty: float) -> Tensor:
    """Make tokens that the text already contains (`present` [N, V]) less likely, by the rule of transformers: positive
    logits are divided by the penalty, negative ones multiplied by it."""
    if penalty == 1:
        return logits
    return torch.where(present, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


# ------------------------------------------- confidence: [N] numbers --------------------------------------------


def filtered_probability(guesses: Guesses) -> Tensor:
    """The guess's probability after temperature and filters (Dream's `maskgit_plus`)."""
    return _of_guess(guesses.filtered, guesses).exp()


def plain_probability(guesses: Guesses) -> Tensor:
    """The guess's probability before temperature and filters (LLaDA's `low_confidence`)."""
    return _of_guess(guesses.plain, guesses).exp()


def plain_score(guesses: Guesses) -> Tensor:
    """The guess's log-probability before temperature and filters (DiffuLLaMA)."""
    return _of_guess(guesses.plain, guesses)


def probability_margin(guesses: Guesses) -> Tensor:
    """How far the most probable token is ahead of the second (Dream's `topk_margin`)."""
    largest = guesses.filtered.exp().topk(2, dim=-1).values
    return largest[..., 0] - largest[..., 1]


def negative_entropy(guesses: Guesses) -> Tensor:
    """The sum of p log p (Dream's `entropy`)."""
    probabilities = guesses.filtered.exp()
    return (probabilities * (probabilities + 1e-10).log()).sum(dim=-1)


def _of_guess(log_probabilities: Tensor, guesses: Guesses) -> Tensor:
    return log_probabilities.gather(-1, guesses.tokens.unsqueeze(-1)).squeeze(-1)


Confidence = Callable[[Guesses], Tensor]
