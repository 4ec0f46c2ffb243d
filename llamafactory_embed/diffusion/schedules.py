"""How many tokens are hidden at a time, and what a hidden token weighs: pure functions of the time.

At time 0 a text is clean, at time 1 it is hidden (nearly) altogether. With p(t) the chance that a token is hidden at
time t, the negative evidence lower bound of a text is the integral over t of p'(t) / p(t) times the sum of the cross
entropies of its hidden tokens (Sahoo et al. 2024, arXiv 2406.07524; Shi et al. 2024, arXiv 2406.04329).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


ScheduleName = Literal["linear", "cosine", "loglinear"]
LossWeight = Literal["elbo", "uniform", "scheduler"]

# The share of tokens that `loglinear` leaves visible at time 1, as in MDLM.
LOGLINEAR_FLOOR = 1e-3


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
