"""Which tokens are hidden: pure functions of recorded draws, and where the draws come from.

A unit of noise is a text (or a block of it, in block diffusion): its tokens share one time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .schedules import NoiseSchedule, times_from_uniforms


@dataclass(frozen=True)
class Corruption:
    """What happened to L tokens. The mask is carried along: a mask token that the text itself holds is data."""

    token_ids: Tensor  # [L], hidden tokens replaced
    hidden: Tensor  # [L] bool
    times: Tensor  # [L], when each token's unit was corrupted


def hide_tokens(
    token_ids: Tensor, hideable: Tensor, times: Tensor, uniforms: Tensor, schedule: NoiseSchedule, mask_token_id: int
) -> Corruption:
    """Hide a token where its draw from [0, 1) lies below its chance; all tensors have the same shape."""
    hidden = (uniforms < schedule.hidden_share(times)) & hideable
    return Corruption(torch.where(hidden, mask_token_id, token_ids), hidden, times)


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
        generator = seeded(self.seed, epoch, place)
        # float64: a float32 draw is a multiple of 2^-24, and among many some would be 0
        per_unit = torch.rand(int(units.max()) + 1, generator=generator, dtype=torch.float64)
        if self.antithetic:
            step, row = divmod(place, self.rows_per_step)
            offset = np.random.default_rng((self.seed, epoch, step)).random()
            per_unit = spread_uniforms(per_unit, row, self.rows_per_step, offset)
        times = times_from_uniforms(per_unit, self.time_epsilon)
        return times[units], torch.rand(len(units), generator=generator, dtype=torch.float64)


def seeded(*numbers: int) -> torch.Generator:
    """A generator of several numbers; neighbours are unrelated."""
    return torch.Generator().manual_seed(mixed_seed(*numbers))


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
