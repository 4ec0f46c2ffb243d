"""The sampling algorithms by name: how confident a guess is, and which guesses a step commits.

`origin`, `maskgit_plus`, `topk_margin`, `entropy`: Dream (Ye et al. 2025). `low_confidence`, `random`: LLaDA (Nie et
al. 2025). `topk_low_score`, `random_keep`: DiffuLLaMA (Gong et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import guesses, schedules
from .settings import SamplingSettings


@dataclass(frozen=True)
class Step:
    """One step of B rows, each of which may be at another place of its schedule."""

    eligible: Tensor  # [B, L] bool, masked positions of each row's block
    block: Tensor  # [B, L] bool, all positions of each row's block, revealed ones too
    width: list[int]  # [B] positions that were masked when the block began
    step: list[int]  # [B] within the block, from 0
    steps: list[int]  # [B] of the block
    uniforms: Tensor | None  # [B, L] for the choice of positions


Count = Callable[[Step], list[int]]


@dataclass(frozen=True)
class Algorithm:
    """What a value of `sampling_algorithm` stands for."""

    confidence: guesses.Confidence | None
    """None: the choice of positions does not depend on the guesses."""

    count: Count | None = None
    """How many positions are revealed; None: `select` decides."""

    select: Callable[[Tensor, Step], Tensor] | None = None
    """(confidence [B, L], step) → revealed [B, L]; None: the most confident positions."""

    needs_chance: bool = False
    """Whether the choice of positions takes uniform numbers."""

    ranks_revealed: bool = False
    """Whether positions that were revealed before are scored again."""


def share_counts(step: Step) -> list[int]:
    """Dream's numbers of positions."""
    masked = step.eligible.sum(dim=-1).tolist()
    return schedules.counts_by_share(masked, step.step, step.steps)


def even_counts(step: Step) -> list[int]:
    """LLaDA's numbers of positions."""
    return schedules.counts_in_equal_parts(step.width, step.step, step.steps)


def reveal_by_share(confidence: Tensor, step: Step) -> Tensor:
    """Dream's `origin`: each position independently, with the schedule's share as its chance."""
    assert step.uniforms is not None
    chances = torch.stack(
        [schedules.revealed_shares(total)[index] for index, total in zip(step.step, step.steps, strict=True)]
    )
    return schedules.by_chance(step.eligible, step.uniforms, chances)


def reveal_by_remaining_steps(confidence: Tensor, step: Step) -> Tensor:
    """DiffuLLaMA's `random_keep`: each position independently, with the chance 1 / (steps that remain)."""
    assert step.uniforms is not None
    chances = [1 / (total - index) for index, total in zip(step.step, step.steps, strict=True)]
    return schedules.by_chance(step.eligible, step.uniforms, chances)


def reveal_all_but_lowest(scores: Tensor, step: Step) -> Tensor:
    """DiffuLLaMA's `topk_low_score`."""
    size = step.block.sum(dim=-1).tolist()
    kept = schedules.kept_counts(size, step.step, step.steps)
    return schedules.all_but_lowest(scores, step.block, step.eligible, kept)


def at_random(scores: guesses.Guesses) -> Tensor:
    """The same confidence everywhere; `with_gumbel_noise` adds the chance."""
    return torch.zeros_like(scores.plain[:, 0])


ALGORITHMS: dict[str, Algorithm] = {
    "origin": Algorithm(None, select=reveal_by_share, needs_chance=True),
    "maskgit_plus": Algorithm(guesses.filtered_probability, share_counts),
    "topk_margin": Algorithm(guesses.probability_margin, share_counts),
    "entropy": Algorithm(guesses.negative_entropy, share_counts),
    "low_confidence": Algorithm(guesses.plain_probability, even_counts),
    "random": Algorithm(at_random, even_counts, needs_chance=True),
    "topk_low_score": Algorithm(guesses.plain_score, select=reveal_all_but_lowest, ranks_revealed=True),
    "random_keep": Algorithm(None, select=reveal_by_remaining_steps, needs_chance=True),
}


def choose_positions(
    algorithm: Algorithm, settings: SamplingSettings, confidence: Tensor, step: Step, counts: list[int] | None
) -> Tensor:
    """The positions [B, L] that a step reveals."""
    if settings.confidence_threshold is not None:
        return schedules.above_threshold(confidence, step.eligible, settings.confidence_threshold)
    if settings.confidence_factor is not None:
        return schedules.by_factor(confidence, step.eligible, settings.confidence_factor)
    if algorithm.select is not None:
        return algorithm.select(confidence, step)
    if settings.alg_temp > 0 or algorithm.needs_chance:
        assert step.uniforms is not None
        confidence = schedules.with_gumbel_noise(confidence, settings.alg_temp or 1.0, step.uniforms)
    assert counts is not None
    return schedules.most_confident(confidence, step.eligible, counts)
