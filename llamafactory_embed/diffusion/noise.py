"""Noise of masked diffusion: how many tokens are hidden at a time, which ones, and what their cross entropies count.

Pure functions, and the source of the draws. A unit of noise is a text (or a block of it, in block diffusion): its
tokens share one time. At time 0 a text is clean, at time 1 it is hidden (nearly) altogether. With p(t) the chance that
a token is hidden at time t, the negative evidence lower bound of a text is the integral over t of p'(t) / p(t) times
the sum of the cross entropies of its hidden tokens (Sahoo et al. 2024, arXiv 2406.07524; Shi et al. 2024, arXiv
2406.04329).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


ScheduleName = Literal["linear", "cosine", "loglinear"]
LossWeight = Literal["elbo", "uniform", "scheduler"]
LossNorm = Literal["token", "sequence", "masked"]

# The share of tokens that `loglinear` leaves visible at time 1, as in MDLM.
LOGLINEAR_FLOOR = 1e-3


# --------------------------------------------------------------------------------------------------------------------
# Schedules
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseSchedule:
    """Tensors of times in (0, 1] → tensors of the same shape."""

    hidden_share: Callable[[Tensor], Tensor]
    """p(t): the chance that a token is hidden."""
    elbo_weight: Callable[[Tensor], Tensor]
    """p'(t) / p(t): what a hidden token's cross entropy counts in the bound."""


SCHEDULES: dict[ScheduleName, NoiseSchedule] = {
    # p = t: DiffuLLaMA, LLaDA, Dream
    "linear": NoiseSchedule(lambda t: t, lambda t: 1 / t),
    # p = sin(pi t / 2): noise comes early, so most times are noisy ones
    "cosine": NoiseSchedule(lambda t: torch.sin(math.pi / 2 * t), lambda t: math.pi / 2 / torch.tan(math.pi / 2 * t)),
    # p = (1 - floor) t: MDLM's, whose total noise is -log(1 - p)
    "loglinear": NoiseSchedule(lambda t: (1 - LOGLINEAR_FLOOR) * t, lambda t: 1 / t),
}


def times_from_uniforms(uniforms: Tensor, time_epsilon: float) -> Tensor:
    """Draws from [0, 1) → times in [time_epsilon, 1): a time of 0 hides nothing and would weigh infinitely much."""
    return (1 - time_epsilon) * uniforms + time_epsilon


# --------------------------------------------------------------------------------------------------------------------
# Which tokens are hidden
# --------------------------------------------------------------------------------------------------------------------


def hide_tokens(hideable: Tensor, times: Tensor, uniforms: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Hide a token where its draw from [0, 1) lies below its chance; all tensors, and the result (bool), have the same
    shape."""
    return (uniforms < schedule.hidden_share(times)) & hideable


def spread_uniforms(uniforms: Tensor, row: int, rows: int, offset: float) -> Tensor:
    """Antithetic draws: those of all units [U] of `rows` rows lie evenly in [0, 1), one in each stratum.

    Row r owns the r-th of `rows` strata and deals it out to its units. `offset` turns the whole circle, so that over
    the steps every row sees every time.
    """
    strata = row + (torch.arange(len(uniforms), dtype=uniforms.dtype) + uniforms) / len(uniforms)
    return (strata / rows + offset) % 1


@dataclass(frozen=True)
class NoiseDraws:
    """The draws of a run, functions of (seed, epoch, place of the row in the epoch): they depend neither on the data
    loader's workers, nor on how a step is cut into micro-batches and ranks, nor on an interruption."""

    seed: int
    rows_per_step: int
    antithetic: bool
    time_epsilon: float

    def draw(self, epoch: int, place: int, units: Tensor) -> tuple[Tensor, Tensor]:
        """For the tokens of a row, whose units are numbered from 0 in `units` [L]: their times and uniform draws, [L]
        each."""
        generator = seeded_generator(self.seed, epoch, place)
        # float64: a float32 draw is a multiple of 2^-24, and among many some would be 0
        per_unit = torch.rand(int(units.max()) + 1, generator=generator, dtype=torch.float64)
        if self.antithetic:
            step, row = divmod(place, self.rows_per_step)
            offset = np.random.default_rng((self.seed, epoch, step)).random()
            per_unit = spread_uniforms(per_unit, row, self.rows_per_step, offset)
        times = times_from_uniforms(per_unit, self.time_epsilon)
        return times[units], torch.rand(len(units), generator=generator, dtype=torch.float64)


def seeded_generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A source of draws that belongs to these numbers, such as (seed, epoch, place of a row): no worker, rank or batch
    size has a part in it, and those of neighbouring numbers are unrelated."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


# --------------------------------------------------------------------------------------------------------------------
# What a hidden token's cross entropy counts
# --------------------------------------------------------------------------------------------------------------------


def loss_weights(times: Tensor, schedule: NoiseSchedule, kind: LossWeight) -> Tensor:
    """What the cross entropy of a token hidden at that time counts.

    `elbo` is the bound, whatever the schedule (what dllm calls "scheduler"); `scheduler` is one over the chance to be
    hidden, so that every time counts alike and the schedule says which noise is seen how often; `uniform` is 1. Under
    `linear` the first two are the same.
    """
    match kind:
        case "elbo":
            return schedule.elbo_weight(times)
        case "scheduler":
            return 1 / schedule.hidden_share(times)
        case "uniform":
            return torch.ones_like(times)


@dataclass(frozen=True)
class LossTerms:
    """What a text brings to the loss of a step: the sum over the step's texts of `coefficients * cross entropies`,
    divided by the sum of their counts. So gradient accumulation and several ranks give the loss of one large batch."""

    coefficients: Tensor  # [M] float32, 0 where nothing is scored
    count: float


def loss_terms(
    times: Tensor,
    scored: Tensor,
    scorable: int,
    *,
    schedule: NoiseSchedule,
    weight: LossWeight,
    norm: LossNorm,
) -> LossTerms:
    """Weigh the scored tokens [M] of a text, hidden at `times` [M]; `scorable` counts those that could have been.

    `token` divides by the latter, which with `elbo` makes the bound in nats a token, however many were hidden (LLaDA
    in pre-training); `sequence` does so within each text and averages over texts (LLaDA in fine-tuning); `masked`
    divides by the number of hidden tokens (DiffuLLaMA), which is no bound and depends on the size of the batch.
    """
    coefficients = torch.where(scored, loss_weights(times, schedule, weight), 0)
    match norm:
        case "token":
            return LossTerms(coefficients.float(), float(scorable))
        case "sequence":
            return LossTerms((coefficients / max(scorable, 1)).float(), float(scorable > 0))
        case "masked":
            return LossTerms(coefficients.float(), float(scored.sum()))
