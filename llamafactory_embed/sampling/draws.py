"""Random numbers of a text that depend on its own seed alone: not on the batch it is in, nor on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Where a denoising loop gets its uniform numbers from. Tests feed recorded ones in."""

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """One number a position [len(rows), L] for the choice of tokens, in the next step of these rows."""

    def positions(self, rows: Sequence[int]) -> Tensor:
        """The same for the choice of positions."""


class SeededDraws:
    """One generator a text. It draws one number for each of the text's generated positions, so that padding, which
    comes from the other texts of a batch, changes nothing."""

    def __init__(self, seeds: Sequence[int], generated: Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._generated = generated.cpu()
        self._device = generated.device

    def tokens(self, rows: Sequence[int]) -> Tensor:
        return self._draw(rows)

    def positions(self, rows: Sequence[int]) -> Tensor:
        return self._draw(rows)

    def _draw(self, rows: Sequence[int]) -> Tensor:
        numbers = torch.zeros(len(rows), self._generated.shape[-1])
        for index, row in enumerate(rows):
            generated = self._generated[row]
            numbers[index, generated] = torch.rand(int(generated.sum()), generator=self._generators[row])
        return numbers.to(self._device)


def text_seed(seed: int, number: int) -> int:
    """The seed of a text, from the run's seed and the text's number in its data set."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
