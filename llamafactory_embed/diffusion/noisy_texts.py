"""A text under noise as the model reads it: which tokens, at which positions, and what is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.token_predictor import NO_LABEL
from .blocks import block_layout
from .corruption import Corruption
from .texts import Text


@dataclass(frozen=True)
class NoisyText:
    """M slots: the text itself, or its blocks in turn."""

    token_ids: Tensor  # [M]
    position_ids: Tensor  # [M]
    labels: Tensor  # [M], the hidden token, `NO_LABEL` where none is scored
    times: Tensor  # [M], when it was hidden
    scorable: int
    """The tokens that could have been hidden and scored."""

    def __len__(self) -> int:
        return len(self.token_ids)


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
    clean: Tensor, hideable: Tensor, corruption: Corruption, *, shift: bool, block_size: int | None
) -> NoisyText:
    """Lay out a corrupted text [L]. With `shift` a token is predicted from the slot before it, so the first token of a
    text cannot be predicted; it may be hidden, as it is where a text is generated from nothing."""
    length = len(clean)
    if block_size is None:
        positions, noisy = torch.arange(length), torch.ones(length, dtype=torch.bool)
    else:
        layout = block_layout(length, block_size)
        positions, noisy = layout.positions, layout.noisy
    predictable = torch.arange(length) >= int(shift)
    scored = noisy & (corruption.hidden & predictable)[positions]  # [M]
    return NoisyText(
        token_ids=torch.where(noisy, corruption.token_ids[positions], clean[positions]),
        position_ids=positions,
        labels=clean[positions].masked_fill(~scored, NO_LABEL),
        times=corruption.times[positions],
        scorable=int((hideable & predictable).sum()),
    )
