"""Noisy texts as packed rows for the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.packed import PackedBatch, fill_rows
from ..model.token_predictor import TokenBatch
from .noisy_texts import NoisyText


def pack_noisy_texts(
    texts: Sequence[NoisyText],
    coefficients: Sequence[Tensor],
    max_tokens: int | None = None,
    allowed: Tensor | None = None,
) -> list[TokenBatch]:
    """Lay out texts of M slots with their coefficients [M] in rows of at most `max_tokens` slots, longest first.

    `allowed` [1, 1, S, S] says who may attend to whom in a text of up to S slots.
    """
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    return [_pack(texts, coefficients, row, allowed) for row in fill_rows(texts, order, max_tokens)]


def _pack(
    texts: Sequence[NoisyText], coefficients: Sequence[Tensor], row: Sequence[int], allowed: Tensor | None
) -> TokenBatch:
    chosen = [texts[index] for index in row]
    longest = len(chosen[0])
    packed = PackedBatch(
        token_ids=torch.cat([text.token_ids for text in chosen]),
        lengths=tuple(len(text) for text in chosen),
        text_indices=tuple(row),
        position_ids=torch.cat([text.position_ids for text in chosen]),
    )
    return TokenBatch(
        packed,
        labels=torch.cat([text.labels for text in chosen]),
        weights=torch.cat([coefficients[index] for index in row]),
        allowed=None if allowed is None else allowed[..., :longest, :longest],
    )
