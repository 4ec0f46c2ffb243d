"""Which positions a step reveals, and how many: pure functions over [B, L] with one count a row.

`step` counts from 0 to `steps` - 1 within a block and may differ from row to row. Dream divides the masked positions
of the whole batch by its rows; we count in each row, which is the same for equal rows and right for ragged ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


SMALLEST_TIME = 1e-3  # Dream's `eps`: time runs from 1 to here


@functools.lru_cache(maxsize=128)
def falling_times(steps: int) -> Tensor:
    """Dream's times [steps + 1], from 1 down to `SMALLEST_TIME`."""
    return torch.linspace(1, SMALLEST_TIME, steps + 1)


@functools.lru_cache(maxsize=128)
def revealed_shares(steps: int) -> Tensor:
    """Dream's share of the masked positions that each step reveals [steps]: 1 - t[i + 1] / t[i], and all at the end.
    In float32 like the original, because the counts are truncated."""
    times = falling_times(steps)
    shares = 1 - times[1:] / times[:-1]
    shares[-1] = 1
    return shares


def counts_by_share(masked: Sequence[int], step: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Dream: a share of what is masked now."""
    return [
        int(torch.tensor(float(count)) * revealed_shares(total)[index])
        for count, index, total in zip(masked, step, steps, strict=True)
    ]


def counts_in_equal_parts(width: Sequence[int], step: Sequence[int], steps: Sequence[int]) -> list[int]:
    """LLaDA: positions masked when the block began (`width`), spread evenly, the remainder over the first steps."""
    return [count // total + (index < count % total) for count, index, total in zip(width, step, steps, strict=True)]


def kept_counts(width: Sequence[int], step: Sequence[int], steps: Sequence[int]) -> list[int]:
    """DiffuLLaMA: how many of the block's positions may stay masked after this step; 0 after the last."""
    return [
        int(torch.tensor(float(count)) * ((total - 1 - index) / total))
        for count, index, total in zip(width, step, steps, strict=True)
    ]


def most_confident(confidence: Tensor, eligible: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
    """The `counts` [B] most confident of the eligible positions of each row, [B, L]; of two equals, the left one."""
    ranked = confidence.masked_fill(~eligible, float("-inf"))
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.zeros_like(order).scatter(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    limits = torch.as_tensor(counts, device=ranks.device).unsqueeze(-1)
    return eligible & (ranks < limits)


def with_gumbel_noise(confidence: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Add noise to the confidence such that the largest k are k draws without replacement from
    softmax(confidence / temperature) (Dream's `alg_temp`)."""
    tiny = torch.finfo(torch.float32).tiny
    noise = -(-uniforms.float().clamp(min=tiny).log()).clamp(min=tiny).log()
    return confidence / temperature + noise.to(confidence.device)


def by_chance(eligible: Tensor, uniforms: Tensor, chances: Sequence[float] | Tensor) -> Tensor:
    """Reveal each eligible position with its row's chance: where the uniform number [B, L] lies below it."""
    limits = torch.as_tensor(chances, dtype=torch.float32, device=eligible.device).unsqueeze(-1)
    return eligible & (uniforms.to(eligible.device) < limits)


def all_but_lowest(scores: Tensor, ranked: Tensor, eligible: Tensor, kept: Sequence[int]) -> Tensor:
    """DiffuLLaMA: reveal the eligible positions whose score is not below the (kept + 1)-th smallest of all `ranked`
    positions [B, L]. Revealed ones are ranked too, so fewer than `kept` may stay masked."""
    ordered = scores.masked_fill(~ranked, float("inf")).sort(dim=-1).values
    index = torch.as_tensor(kept, device=scores.device).unsqueeze(-1).clamp(max=scores.shape[-1] - 1)
    return eligible & (scores >= ordered.gather(-1, index))


def above_threshold(confidence: Tensor, eligible: Tensor, threshold: float) -> Tensor:
    """Fast-dLLM (Wu et al. 2025): every eligible position above the threshold, or else the most confident one."""
    return eligible & (confidence > threshold) | most_confident(confidence, eligible, [1] * len(confidence))


def by_factor(confidence: Tensor, eligible: Tensor, factor: float) -> Tensor:
    """Fast-dLLM: the n most confident positions, with the largest n such that (n + 1)(1 - c) < factor for the n-th
    confidence c: the more are revealed at once, the more confident each must be. At least one."""
    ordered = confidence.masked_fill(~eligible, float("-inf")).sort(dim=-1, descending=True).values
    numbers = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
    fits = (numbers + 1) * (1 - ordered) < factor
    counts = (fits * numbers).amax(dim=-1).clamp(min=1)
    return most_confident(confidence, eligible, counts)
