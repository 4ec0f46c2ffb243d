"""What the cross entropies of hidden tokens add up to: pure functions over the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .schedules import LossWeight, NoiseSchedule, loss_weights


LossNorm = Literal["token", "sequence", "masked"]


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
