"""A Monte-Carlo estimate of the negative evidence lower bound, with draws that are the same in every evaluation.

For a text of n tokens the bound is, whatever the schedule, the mean over l = 1..n of n/l times the sum of the cross
entropies of l tokens that are hidden at random (Nie et al. 2025, arXiv 2502.09992; Ou et al. 2024, arXiv 2406.03736).
Hiding an exact number of tokens has less variance than hiding each by chance, and no earliest time cuts off a part of
the bound. In block diffusion the same holds for each block, with the clean blocks before it given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.document_batches import DocumentRow
from .batch import pack_noisy_texts
from .corruption import Corruption, seeded
from .noisy_texts import NoisyText, hideable_tokens, noise_units, noisy_text
from .texts import Text, TextsOfRows


EVALUATION_SEED = 20241017  # not the run's: evaluations of different runs are comparable


@dataclass(frozen=True)
class ScoredCorruption:
    """A corrupted text and what each hidden token's cross entropy counts in the estimate."""

    text: NoisyText
    coefficients: Tensor  # [M]


def hide_exactly(hideable: Tensor, units: Tensor, unit_uniforms: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Of the n hideable tokens of each unit hide l = ⌈u n⌉ for u in (0, 1], those with the smallest draws.

    `hideable`, `units`, `uniforms` [L], `unit_uniforms` [U] → which are hidden [L] bool, and n/l for each token [L].
    """
    counts = torch.zeros(len(unit_uniforms), dtype=torch.long).index_add(0, units, hideable.long())  # [U]
    wanted = ((1 - unit_uniforms) * counts).ceil().long().clamp(min=1)
    # Sorted by unit, hideable ones first, then by draw: a token is hidden by its place within its unit.
    order = torch.from_numpy(np.lexsort((uniforms.numpy(), ~hideable.numpy(), units.numpy())))
    sizes = torch.bincount(units, minlength=len(unit_uniforms))
    starts = sizes.cumsum(0) - sizes  # [U]
    place = torch.empty_like(units)
    place[order] = torch.arange(len(units)) - starts[units[order]]
    return hideable & (place < wanted[units]), (counts / wanted)[units]


def evaluation_corruptions(
    text: Text, identity: tuple[int, ...], samples: int, *, mask_token_id: int, shift: bool, block_size: int | None
) -> list[ScoredCorruption]:
    """`samples` corruptions of a text, always the same ones for the same `identity`; their shares of hidden tokens lie
    evenly in (0, 1].

    With a shift the first token cannot be predicted. It is then given, and the bound is one of all others.
    """
    clean = torch.tensor(text.token_ids)
    hideable = hideable_tokens(text, keep_first=shift)
    units = noise_units(len(text), block_size)
    count = int(units[-1]) + 1
    offsets = torch.rand(count, generator=seeded(EVALUATION_SEED, *identity), dtype=torch.float64)  # [U]
    found = []
    for sample in range(samples):
        chance = seeded(EVALUATION_SEED, *identity, sample)
        per_unit, per_token = (torch.rand(size, generator=chance, dtype=torch.float64) for size in (count, len(text)))
        hidden, weights = hide_exactly(hideable, units, ((sample + per_unit) / samples + offsets) % 1, per_token)
        corruption = Corruption(torch.where(hidden, mask_token_id, clean), hidden, times=weights)
        noisy = noisy_text(clean, hideable, corruption, shift=shift, block_size=block_size)
        found.append(ScoredCorruption(noisy, noisy.times.float() / samples))
    return found


class EvaluationCollator:
    """Rows → all corruptions of their texts. The `divisor` is the number of tokens that the bound is about."""

    def __init__(
        self,
        texts_of_rows: TextsOfRows,
        samples: int,
        *,
        mask_token_id: int,
        shift: bool,
        block_size: int | None,
        max_tokens: int,
    ) -> None:
        self.texts_of_rows = texts_of_rows
        self.samples = samples
        self.mask_token_id = mask_token_id
        self.shift = shift
        self.block_size = block_size
        self.max_tokens = max_tokens

    def __call__(self, rows: Sequence[DocumentRow]) -> dict[str, Any]:
        corruptions: list[ScoredCorruption] = []
        tokens = 0
        for row, texts in zip(rows, self.texts_of_rows(rows), strict=True):
            for number, text in enumerate(texts):
                learned = text if not row.is_filler else Text(text.token_ids, [True] * len(text))
                corruptions += evaluation_corruptions(
                    learned,
                    (row.place, number),
                    self.samples,
                    mask_token_id=self.mask_token_id,
                    shift=self.shift,
                    block_size=self.block_size,
                )
                tokens += int(hideable_tokens(learned, keep_first=self.shift).sum())
        batches = pack_noisy_texts(
            [each.text for each in corruptions], [each.coefficients for each in corruptions], self.max_tokens
        )
        return {"batches": batches, "divisor": torch.tensor(float(tokens))}


def bound_metrics(nats_per_token: float) -> dict[str, float]:
    """What an evaluation reports. The perplexity is a bound: the model's own is not greater."""
    return {
        "loss": nats_per_token,
        "bits_per_token": nats_per_token / math.log(2),
        "perplexity_bound": math.exp(min(nats_per_token, 700.0)),
    }
