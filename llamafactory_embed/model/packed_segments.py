"""Sums and picks over the texts of a packed row: no padding, no loop over texts.

`lengths` are the numbers of tokens of B texts that lie end to end in T tokens; every text has at least one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor


Lengths: TypeAlias = Sequence[int] | Tensor


def lengths_tensor(lengths: Lengths, device: torch.device) -> Tensor:
    """Lengths as integers [B] on that device."""
    if isinstance(lengths, Tensor):
        return lengths.to(device=device, dtype=torch.long)
    return torch.tensor(list(lengths), dtype=torch.long, device=device)


def text_of_token(lengths: Tensor, total: int) -> Tensor:
    """The index of the text that each token belongs to, [T]."""
    texts = torch.arange(len(lengths), device=lengths.device)
    return torch.repeat_interleave(texts, lengths, output_size=total)


def count_tokens(pooled_tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled tokens [T] → their number in each text [B], and the rank 1, 2, … of each one within its text [T]."""
    running = pooled_tokens.long().cumsum(0)  # [T]
    ends = lengths.cumsum(0)  # [B]
    up_to_end = running[ends - 1]  # [B]
    before = torch.cat([up_to_end.new_zeros(1), up_to_end[:-1]])  # [B]
    return up_to_end - before, running - before[text_of_token(lengths, len(running))]


def fill_empty_texts(pooled_tokens: Tensor, lengths: Tensor) -> Tensor:
    """Let all tokens of a text count if none of them does, [T]."""
    counts, _ = count_tokens(pooled_tokens, lengths)
    return pooled_tokens | (counts == 0)[text_of_token(lengths, len(pooled_tokens))]


def first_states(hidden: Tensor, lengths: Lengths) -> Tensor:
    """The state of each text's first token, [T, d] → [B, d]."""
    sizes = lengths_tensor(lengths, hidden.device)
    return hidden[sizes.cumsum(0) - sizes].to(pooled_dtype(hidden))


def last_states(hidden: Tensor, lengths: Lengths) -> Tensor:
    """The state of each text's last token, [T, d] → [B, d]."""
    sizes = lengths_tensor(lengths, hidden.device)
    return hidden[sizes.cumsum(0) - 1].to(pooled_dtype(hidden))


def mean_states(
    hidden: Tensor, lengths: Lengths, pooled_tokens: Tensor | None = None, *, growing: bool = False
) -> Tensor:
    """The average of each text's pooled tokens, [T, d] → [B, d]; `growing` weighs them 1, 2, …, m from the left."""
    sizes = lengths_tensor(lengths, hidden.device)
    if pooled_tokens is None:
        pooled_tokens = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    pooled_tokens = fill_empty_texts(pooled_tokens.to(hidden.device), sizes)

    counts, ranks = count_tokens(pooled_tokens, sizes)
    totals = counts * (counts + 1) / 2 if growing else counts  # [B]: what the weights sum to
    numerators = ranks * pooled_tokens if growing else pooled_tokens  # [T]
    weights = numerators.to(pooled_dtype(hidden)) / totals[text_of_token(sizes, len(ranks))]
    # `segment_reduce` and not `index_add`, whose order of summation varies from run to run on CUDA. Its checks of the
    # lengths would wait for the device.
    return torch.segment_reduce(hidden * weights.unsqueeze(1), "sum", lengths=sizes, unsafe=True)


def pooled_dtype(hidden: Tensor) -> torch.dtype:
    """Embeddings are at least float32: similarities are divided by temperatures as small as 0.002."""
    return torch.promote_types(hidden.dtype, torch.float32)
