"""A Monte-Carlo estimate of the negative evidence lower bound, with draws that are the same in every evaluation.

For a text of n tokens the bound is, whatever the schedule, the mean over l = 1..n of n/l times the sum of the cross
entropies of l tokens that are hidden at random (Nie et al. 2025, arXiv 2502.09992; Ou et al. 2024, arXiv 2406.03736).
Hiding an exact number of tokens has less variance than hiding each by chance, and no earliest time cuts off a part of
the bound. In block diffusion the same holds for each block, with the clean blocks before it given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.document_batches import DocumentRow
from ..model.token_predictor import CorruptedText
from .batches import CorruptedRow
from .noise import seeded_generator
from .noisy_texts import hideable_tokens, noise_units, noisy_text
from .texts import Text


EVALUATION_SEED = 20241017  # not the run's: evaluations of different runs are comparable


def hide_exactly(hideable: Tensor, units: Tensor, unit_uniforms: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Of the n hideable tokens of each unit hide l = ⌈u n⌉ for u in (0, 1], those with the smallest draws.

    `hideable`, `units`, `uniforms` [L], `unit_uniforms` [U] → which are hidden [L] bool, and n/l for each token [L].
    """
    counts = torch.zeros(len(unit_uniforms), dtype=torch.long).index_add(0, units, hideable.long())  # [U]
    hidden_counts = ((1 - unit_uniforms) * counts).ceil().long().clamp(min=1)
    # Sorted by unit, hideable ones first, then by draw: a token is hidden by its place within its unit.
    order = torch.from_numpy(np.lexsort((uniforms.numpy(), ~hideable.numpy(), units.numpy())))
    sizes = torch.bincount(units, minlength=len(unit_uniforms))
    starts = sizes.cumsum(0) - sizes  # [U]
    place = torch.empty_like(units)
    place[order] = torch.arange(len(units)) - starts[units[order]]
    return hideable & (place < hidden_counts[units]), (counts / hidden_counts)[units]


def evaluation_corruptions(
    text: Text, identity: tuple[int, ...], samples: int, *, mask_token_id: int, shift: bool, block_size: int | None
) -> list[CorruptedText]:
    """`samples` corruptions of a text, always the same ones for the same `identity`; their shares of hidden tokens lie
    evenly in (0, 1]. Their weights say what each hidden token's cross entropy counts in the estimate.

    With a shift the first token cannot be predicted. It is then given, and the bound is one of all others.
    """
    clean = torch.tensor(text.token_ids)
    hideable = hideable_tokens(text, keep_first=shift)
    units = noise_units(len(text), block_size)
    count = int(units[-1]) + 1
    offsets = torch.rand(count, generator=seeded_generator(EVALUATION_SEED, *identity), dtype=torch.float64)  # [U]
    corruptions = []
    for sample in range(samples):
        generator = seeded_generator(EVALUATION_SEED, *identity, sample)
        per_unit, per_token = (
            torch.rand(size, generator=generator, dtype=torch.float64) for size in (count, len(text))
        )
        hidden, weights = hide_exactly(hideable, units, ((sample + per_unit) / samples + offsets) % 1, per_token)
        noisy = noisy_text(clean, hidden, mask_token_id=mask_token_id, shift=shift, block_size=block_size)
        corruptions.append(replace(noisy, weights=weights[noisy.position_ids].float() / samples))
    return corruptions


@dataclass(frozen=True)
class BoundCorruption:
    """All corruptions of a row's texts; called by the collator. The loss count is the number of tokens that the bound
    is about."""

    samples: int
    mask_token_id: int
    shift: bool
    block_size: int | None

    def __call__(self, row: DocumentRow, texts: Sequence[Text]) -> CorruptedRow:
        corrupted: list[CorruptedText] = []
        for number, text in enumerate(texts):
            corrupted += evaluation_corruptions(
                text,
                (row.place, number),
                self.samples,
                mask_token_id=self.mask_token_id,
                shift=self.shift,
                block_size=self.block_size,
            )
        tokens = sum(int(hideable_tokens(text, keep_first=self.shift).sum()) for text in texts)
        return CorruptedRow(corrupted, loss_count=float(tokens))


def bound_metrics(nats_per_token: float) -> dict[str, float]:
    """What an evaluation reports. The perplexity is an upper bound of the model's."""
    return {
        "loss": nats_per_token,
        "bits_per_token": nats_per_token / math.log(2),
        "perplexity_bound": math.exp(min(nats_per_token, 700.0)),
    }
