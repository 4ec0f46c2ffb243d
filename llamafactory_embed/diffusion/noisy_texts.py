"""A text under noise as the model reads it: which tokens, at which positions, and what is to be predicted."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..model.token_predictor import NO_LABEL, CorruptedText
from .blocks import block_layout
from .noise import LossNorm, LossWeight, NoiseSchedule, loss_terms
from .texts import Text


def hideable_tokens(text: Text, keep_first: bool = False) -> Tensor:
    """The tokens that noise may hide [L]: all but the prompt (and but the first one, where that can be given but not
    predicted)."""
    prompt = text.is_prompt if text.is_prompt is not None else [False] * len(text)
    hideable = ~torch.tensor(prompt, dtype=torch.bool)
    if keep_first:
        hideable[:1] = False
    return hideable


def noise_units(length: int, block_size: int | None) -> Tensor:
    """The number of each token's unit of noise, whose tokens share one time: the text, or the block [L]."""
    return torch.arange(length) // (block_size or length)


def noisy_text(
    clean: Tensor, hidden: Tensor, *, mask_token_id: int, shift: bool, block_size: int | None
) -> CorruptedText:
    """Lay out a text [L] whose `hidden` tokens [L] the mask token replaces: as it is, or its blocks in turn.

    What is hidden is told by `hidden` alone: a mask token that the text itself holds is data.
    """
    length = len(clean)
    if block_size is None:
        positions, noisy = torch.arange(length), torch.ones(length, dtype=torch.bool)
    else:
        layout = block_layout(length, block_size)
        positions, noisy = layout.positions, layout.noisy
    hidden_slots = noisy & hidden[positions]  # [M]
    scored = hidden_slots & (positions >= int(shift))
    tokens = clean[positions]
    return CorruptedText(
        token_ids=tokens.masked_fill(hidden_slots, mask_token_id),
        labels=tokens.masked_fill(~scored, NO_LABEL),
        position_ids=positions,
    )


def weigh_text(
    noisy: CorruptedText,
    times: Tensor,
    hideable: Tensor,
    *,
    shift: bool,
    schedule: NoiseSchedule,
    weight: LossWeight,
    norm: LossNorm,
) -> tuple[CorruptedText, float]:
    """A noisy text whose labels count what `loss_terms` says, and what it adds to the loss count. The `times` at which
    its tokens were hidden [L] and the `hideable` ones [L] are those of the text itself.

    With `shift` a token is predicted from the slot before it, so the first one cannot be scored. (It may be hidden, as
    it is where a text is generated from nothing.)
    """
    terms = loss_terms(
        times[noisy.position_ids],
        noisy.labels != NO_LABEL,
        scorable=int(hideable[int(shift) :].sum()),
        schedule=schedule,
        weight=weight,
        norm=norm,
    )
    return replace(noisy, weights=terms.coefficients), terms.count
