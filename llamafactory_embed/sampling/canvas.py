"""Texts with holes: what is given, what is to be generated, and what is masked still.

A boolean mask is carried along, so that a natural occurrence of the mask token in a prompt is a token like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Canvas:
    """B texts, padded at the left to one length L."""

    tokens: Tensor  # [B, L]
    generated: Tensor  # [B, L] bool, positions that are or will be generated
    masked: Tensor  # [B, L] bool, those that are not revealed yet
    real: Tensor  # [B, L] bool, False for padding

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], new_tokens: int, mask_token: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """Every prompt with as many masks behind it."""
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

    def rows(self, kept: Tensor) -> Canvas:
        """Some of the texts, by a boolean mask [B]."""
        return Canvas(self.tokens[kept], self.generated[kept], self.masked[kept], self.real[kept])

    def text(self, row: int) -> list[int]:
        """All tokens of one text, without padding."""
        return self.tokens[row][self.real[row]].tolist()

    def answer(self, row: int) -> list[int]:
        """The generated tokens of one text."""
        return self.tokens[row][self.generated[row]].tolist()


def blocks_of(generated: Tensor, block_length: int | None) -> Tensor:
    """The number of the block of each generated position, from 0 in each row; -1 elsewhere, [B, L]."""
    ranks = generated.long().cumsum(dim=-1) - 1
    return torch.where(generated, 0 if block_length is None else ranks // block_length, -1)


def blocks_from_start(generated: Tensor, real: Tensor, block_size: int) -> Tensor:
    """The same where blocks are counted from the start of the text, as in block diffusion."""
    blocks = position_ids(real) // block_size
    first = torch.where(generated, blocks, blocks.shape[-1]).amin(dim=-1, keepdim=True)
    return torch.where(generated, blocks - first, -1)


def whole_blocks(chosen: Tensor, real: Tensor, block_size: int) -> Tensor:
    """Chosen positions [B, L], of one block in each row, and all others of that block: what is given in it sees what
    is generated in it."""
    blocks = (position_ids(real) // block_size).masked_fill(~real, -1)
    own = torch.where(chosen, blocks, -1).amax(dim=-1, keepdim=True)  # -1 where nothing is chosen
    return (blocks == own) & (own >= 0)


def position_ids(real: Tensor) -> Tensor:
    """Positions counted from each text's first real token [B, L]; 1 at padding, as transformers has it."""
    return (real.long().cumsum(dim=-1) - 1).masked_fill(~real, 1)
