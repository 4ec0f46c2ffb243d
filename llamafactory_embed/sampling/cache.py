"""Keys and values that are kept while a block is denoised (Fast-dLLM, Wu et al. 2025).

In a bidirectional model every token's keys and values change with every step, so a cache is an approximation: what
lies outside of the block is seen as it was when the block began. `prefix` keeps what precedes the block and computes
the block and all behind it; `dual` keeps what is behind it, too, and computes the block alone. The first forward of a
block computes everything, as does every `refresh_steps`-th.

It is exact where nothing outside of the block would have changed: in a model of one layer, when it is refreshed in
every step, and when the block is the whole text.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class DenoisingCache(Cache):
    """Keys and values of all layers; a forward over some columns writes them over those that were kept."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # layer → keys, values [B, heads, L, head size]
        self.first = 0  # the columns that the next forward computes
        self.stop = 0
        self.length = 0

    def compute(self, first: int, stop: int, length: int) -> None:
        """The next forward runs over these columns of a text of that length."""
        self.first, self.stop, self.length = first, stop, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.stop - self.first == self.length:
            self.kept[layer_idx] = (key_states, value_states)
            return key_states, value_states
        columns = slice(self.first, self.stop)
        keys, values = self.kept[layer_idx]
        keys[:, :, columns], values[:, :, columns] = key_states, value_states
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Where the columns that are computed begin."""
        return self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """All columns are attended to, from the first one on."""
        return self.length, 0

    def keep_rows(self, kept: Tensor) -> None:
        """Only these rows go on."""
        self.kept = {layer: (keys[kept], values[kept]) for layer, (keys, values) in self.kept.items()}


class CachePlan:
    """Which columns each forward of a block computes."""

    def __init__(self, kind: str, shift: bool, refresh_steps: int | None) -> None:
        self.kind = kind
        self.shift = shift
        self.refresh_steps = refresh_steps
        self.cache = DenoisingCache()
        self.block = (0, 0)
        self.forwards = 0  # since the block began

    def enter_block(self, start: int, stop: int) -> None:
        """A new block: the next forward computes everything."""
        self.block, self.forwards = (start, stop), 0

    def next_forward(self, length: int) -> tuple[DenoisingCache, int, int]:
        """The cache for the next forward and the columns that it computes, from … to before …."""
        refresh = self.forwards == 0 or (self.refresh_steps is not None and self.forwards % self.refresh_steps == 0)
        self.forwards += 1
        first, stop = 0, length
        if not refresh:
            start, end = self.block
            first = (
                max(0, start - 1) if self.shift else start
            )  # under shift the column before the block guesses for it
            stop = end if self.kind == "dual" else length
        self.cache.compute(first, stop, length)
        return self.cache, first, stop

    def keep_rows(self, kept: Tensor) -> None:
        """Only these rows go on."""
        self.cache.keep_rows(kept)
