"""Block diffusion (Arriola et al. 2025, arXiv 2503.09573): blocks from left to right, diffusion within a block.

Training shows the model a noisy and a clean copy of a text. A noisy block sees itself and the clean blocks before it,
a clean block the clean ones up to itself. The original puts one copy after the other; here they alternate block by
block, noisy then clean:

    noisy 0, clean 0, noisy 1, clean 1, ..., noisy K-1

and the last block has no clean copy, because no block would see it. So one mask serves texts of every length, each of
which reads its upper left corner. The clean token before a noisy block stands directly in front of it: a model that
predicts with a shift predicts a block's first token from there, as it does when it generates block after block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockLayout:
    """Where the M slots of a laid-out text come from."""

    positions: Tensor  # [M], the position in the text
    noisy: Tensor  # [M] bool


def block_layout(length: int, block_size: int) -> BlockLayout:
    """The slots of a text of that many tokens; its last block may be shorter."""
    starts = range(0, length, block_size)
    blocks = [torch.arange(start, min(start + block_size, length)) for start in starts]
    pieces = [piece for block in blocks[:-1] for piece in (block, block)] + blocks[-1:]
    noisy = [
        torch.full((len(piece),), number % 2 == 0, dtype=torch.bool) for number, piece in enumerate(pieces)
    ]  # noisy pieces are the even ones
    return BlockLayout(torch.cat(pieces), torch.cat(noisy))


def block_mask(slots: int, block_size: int, device: torch.device | str | None = None) -> Tensor:
    """Which slot may attend to which, [1, 1, slots, slots], True = may: for the longest text, and for every other."""
    slot = torch.arange(slots, device=device)
    block = slot // (2 * block_size)
    noisy = slot % (2 * block_size) < block_size
    same_noisy_block = noisy[:, None] & noisy & (block[:, None] == block)
    clean_before = ~noisy & (block < block[:, None])
    clean_up_to_itself = ~noisy[:, None] & ~noisy & (block <= block[:, None])
    return (same_noisy_block | clean_before | clean_up_to_itself)[None, None]
