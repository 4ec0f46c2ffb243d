"""Hard negatives that nobody wrote: mixtures of two of a row's own (Kalantidis et al. 2020; KaLM-Embedding-V2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .rows import EmbeddedRows


MIXTURE_ID = -1  # no text has it
WORD = 2**63


def with_mixed_negatives(rows: EmbeddedRows, count: int) -> EmbeddedRows:
    """The rows [B] with `count` more negatives each: share · a + (1 - share) · b of two different ones of its own,
    scaled to unit length, as cosines see them anyway.

    Which two and what share are numbers that depend on the texts alone: they are the same under GradCache, on any
    number of ranks and after a resumption. A row whose negatives are drawn anew is mixed anew.
    """
    negatives = rows.passages.shape[1] - 1
    if not count or negatives < 2 or rows.passage_ids is None:
        return rows
    numbers = random_numbers(rows.passage_ids.sum(dim=1), 3 * count)  # [B, 3M], sums wrap around
    first_number, step_number, shares = numbers.chunk(3, dim=1)
    first = (first_number * negatives).long()
    second = (first + 1 + (step_number * (negatives - 1)).long()) % negatives
    mixtures = mix(rows.passages[:, 1:], first, second, shares)
    ids = rows.passage_ids.new_full((len(rows.passage_ids), count), MIXTURE_ID)
    guide = rows.guide
    if guide is not None:
        guided = mix(guide.passages[:, 1:], first, second, shares)
        guide = dataclasses.replace(guide, passages=torch.cat([guide.passages, guided], dim=1))
    return dataclasses.replace(
        rows,
        passages=torch.cat([rows.passages, mixtures], dim=1),
        passage_ids=torch.cat([rows.passage_ids, ids], dim=1),
        guide=guide,
    )


def mix(negatives: Tensor, first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Mixtures [B, M, d] of the unit vectors of negatives [B, K, d] at the places `first` and `second` [B, M]."""
    units = torch.nn.functional.normalize(negatives, dim=-1)
    row = torch.arange(len(units), device=units.device).unsqueeze(1)
    share = shares.to(units.dtype).unsqueeze(-1)
    mixed = share * units[row, first] + (1 - share) * units[row, second]
    return torch.nn.functional.normalize(mixed, dim=-1)


def random_numbers(seeds: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each whole number [B] → [B, count], by SplitMix64 (Steele et al. 2014), whose
    arithmetic wraps around as that of 64-bit integers does."""
    steps = torch.arange(1, count + 1, device=seeds.device)
    state = seeds.unsqueeze(1) + steps * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shift(state, 31)
    return _shift(state, 11).double() / 2**53


def _shift(state: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills up with zeros, which torch's does not for negative numbers."""
    return (state >> bits) & (2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= WORD else word
