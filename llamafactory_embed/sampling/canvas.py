"""Texts with holes: what is given, what is generated, and what is still masked.

A boolean mask is carried along, so that a mask token that occurs in a prompt is a token like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Canvas:
    """B texts, padded on the left to one length L."""

    tokens: Tensor  # [B, L]
    generated: Tensor  # [B, L] bool, positions that are or will be generated
    masked: Tensor  # [B, L] bool, those that are not revealed yet
    real: Tensor  # [B, L] bool, False for padding

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], new_tokens: int, mask_token: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """Each prompt followed by the same number of masks."""
        texts = [[*prompt, *[mask_token] * new_tokens] for prompt in prompts]
        holes = [[False] * len(prompt) + [True] * new_tokens for prompt in prompts]
        return cls.of_texts(texts, holes, mask_token, device)

    @classmethod
    def of_texts(
        cls,
        texts: Sequence[Sequence[int]],
        holes: Sequence[Sequence[bool]],
        mask_token: int,
        device: torch.device | str = "cpu",
    ) -> Canvas:
        """Texts with holes anywhere; the tokens in the holes do not matter."""
        length = max(map(len, texts))
        tokens = torch.full((len(texts), length), mask_token, dtype=torch.long)
        generated = torch.zeros(len(texts), length, dtype=torch.bool)
        real = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, (text, hole) in enumerate(zip(texts, holes, strict=True)):
            start = length - len(text)
            tokens[row, start:] = torch.tensor(text, dtype=torch.long)
            generated[row, start:] = torch.tensor(hole, dtype=torch.bool)
            real[row, start:] = True
        tokens = tokens.masked_fill(generated, mask_token)
        return cls(tokens.to(device), generated.to(device), generated.to(device), real.to(device))

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, selection: Tensor | Sequence[int]) -> Canvas:
        """Copy some of the texts, selected by a boolean mask [B] or by their indices."""
        index = torch.as_tensor(selection, device=self.tokens.device)
        return Canvas(self.tokens[index], self.generated[index], self.masked[index], self.real[index])

    def text(self, row: int) -> list[int]:
        """All tokens of one text, without padding."""
        return self.tokens[row][self.real[row]].tolist()

    def answer(self, row: int) -> list[int]:
        """The generated tokens of one text."""
        return self.tokens[row][self.generated[row]].tolist()


def blocks_of(generated: Tensor, block_length: int | None) -> Tensor:
    """The block number of each generated position, counted from 0 in each row; -1 elsewhere, [B, L]."""
    ranks = generated.long().cumsum(dim=-1) - 1
    return torch.where(generated, 0 if block_length is None else ranks // block_length, -1)


def blocks_from_start(generated: Tensor, real: Tensor, block_size: int) -> Tensor:
    """The same for block diffusion, whose blocks are counted from the start of the text."""
    blocks = position_ids(real) // block_size
    first = torch.where(generated, blocks, blocks.shape[-1]).amin(dim=-1, keepdim=True)
    return torch.where(generated, blocks - first, -1)


def whole_blocks(positions: Tensor, real: Tensor, block_size: int) -> Tensor:
    """Extend positions [B, L] that lie in one block of each row to the whole block: what is given in a block sees what
    is generated in it."""
    blocks = (position_ids(real) // block_size).masked_fill(~real, -1)
    block_of_row = torch.where(positions, blocks, -1).amax(dim=-1, keepdim=True)  # -1 in a row without positions
    return (blocks == block_of_row) & (block_of_row >= 0)


def position_ids(real: Tensor) -> Tensor:
    """Positions counted from each text's first real token [B, L]; 1 at padding, as in transformers."""
    return (real.long().cumsum(dim=-1) - 1).masked_fill(~real, 1)
