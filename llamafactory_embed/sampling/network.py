"""What the denoising loop asks: the states of some positions of a canvas, and their logits.

The two are apart, so that the loop can go through a vocabulary of 150 thousand in chunks of positions.

Keys and values may be kept while a block is denoised (Fast-dLLM, Wu et al. 2025). In a bidirectional model every
token's keys and values change with every step, so a cache is an approximation: what lies outside the block is seen as
it was when the block began. `prefix` keeps what precedes the block and computes the block and all that follows it;
`dual` also keeps what follows and computes the block alone. The first forward of a block computes everything, as does
every `refresh_steps`-th. A cache is exact where nothing outside the block would have changed: in a model of one layer,
when it is refreshed in every step, and when the block is the whole text.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from attention_patch import AttentionPatch, SlidingWindow, current_patch, mask_inputs, patch_attention

from ..model.packed import find_decoder
from ..model.token_loss import LanguageModelHead
from .canvas import position_ids


class Network(Protocol):
    """Anything that guesses tokens: a language model, or a formula in a test."""

    waits_for_blocks: bool
    """Whether all rows must work at the same block, which must lie in the same columns: so for a cache."""

    rows_per_chunk: int
    """For how many states to call the head at a time."""

    def states(self, tokens: Tensor, real: Tensor, queried: Tensor) -> Tensor:
        """What the guesses for the N `queried` positions [B, L] of `tokens` [B, L] are made from, [N, …], row after
        row; `real` is False at padding."""

    def head(self, states: Tensor) -> Tensor:
        """Logits [n, V] of some of these states."""

    def enter_block(self, start: int, stop: int) -> None:
        """From now on, only the columns from `start` to before `stop` change."""

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these rows [B] (bool) only."""


class LanguageModelNetwork:
    """A language model of transformers, with LoRA layers or without, its attention made bidirectional.

    The head runs at the queried positions only. With `block_size` no position sees a later block. With `shift` (models
    that were adapted from next-token prediction) the logits of a position are those that the model gives one position
    earlier; the first position uses its own.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shift: bool,
        block_size: int | None = None,
        sliding_window: SlidingWindow = "keep",
        cache: str = "none",
        cache_refresh_steps: int | None = None,
    ) -> None:
        self.decoder = find_decoder(model)
        self._head = LanguageModelHead.of_model(model)
        self.rows_per_chunk = self._head.rows_per_chunk
        self.shift = shift
        self.block_size = block_size
        self.plan = None if cache == "none" else CachePlan(cache, shift, cache_refresh_steps)
        self.waits_for_blocks = self.plan is not None
        patch = make_bidirectional(model, sliding_window)
        # Flash kernels know no keys before the first query. A forward with a mask runs through sdpa.
        self.needs_mask = self.plan is not None and patch.backend.startswith("flash")

    def states(self, tokens: Tensor, real: Tensor, queried: Tensor) -> Tensor:
        first, hidden = self._hidden(tokens, real)  # [B, Q, d], of the columns from `first` on
        rows, columns = queried.nonzero(as_tuple=True)
        if self.shift:
            # a text's first real position has no predecessor
            starts = real.long().argmax(dim=-1)
            columns = torch.where(columns > starts[rows], columns - 1, columns)
        return hidden[rows, columns - first]

    def head(self, states: Tensor) -> Tensor:
        return self._head(states)

    def enter_block(self, start: int, stop: int) -> None:
        if self.plan is not None:
            self.plan.enter_block(start, stop)

    def keep_rows(self, kept: Tensor) -> None:
        if self.plan is not None:
            self.plan.keep_rows(kept)

    def _hidden(self, tokens: Tensor, real: Tensor) -> tuple[int, Tensor]:
        """The first column that was computed, and the hidden states from there on [B, Q, d]."""
        cache: DenoisingCache | None = None
        first, stop = 0, tokens.shape[-1]
        if self.plan is not None:
            cache, first, stop = self.plan.next_forward(tokens.shape[-1])
        positions = position_ids(real)
        output = self.decoder(
            input_ids=tokens[:, first:stop],
            position_ids=positions[:, first:stop],
            past_key_values=cache,
            use_cache=cache is not None,
            return_dict=True,
            **self._mask(positions, real, first, stop),
        )
        return first, output.last_hidden_state

    def _mask(self, positions: Tensor, real: Tensor, first: int, stop: int) -> dict[str, Any]:
        if self.block_size is None and not self.needs_mask:
            return {"attention_mask": None if bool(real.all()) else real.long()}
        allowed = real[:, None, :].expand(-1, real.shape[-1], -1)  # [B, L, L]
        if self.block_size is not None:
            blocks = positions // self.block_size  # [B, L]
            allowed = allowed & (blocks[:, None, :] <= blocks[:, :, None])
        (mask,) = mask_inputs(self.decoder, allowed[:, None]).values()
        if isinstance(mask, dict):  # of layers with and without a sliding window
            return {"attention_mask": {kind: each[:, :, first:stop] for kind, each in mask.items()}}
        return {"attention_mask": mask[:, :, first:stop]}


_patching = threading.Lock()


def make_bidirectional(model: nn.Module, sliding_window: SlidingWindow) -> AttentionPatch:
    """Patch the model's attention, unless it is patched that way already.

    Several answers may be at work with one model, each in its thread. A patch replaces an earlier one, and until it is
    complete, forwards of the other answers would run through layers that are causal again.
    """
    with _patching:
        patch = current_patch(model)
        if patch is None or (patch.mode, patch.sliding_window) != ("bidirectional", sliding_window):
            patch = patch_attention(model, "bidirectional", sliding_window=sliding_window)
        return patch


class GuidedNetwork:
    """Classifier-free guidance as in LLaDA: away from what the network would say without everything that was given.

    u + (scale + 1)(c - u), where c sees the canvas and u sees it with all given tokens masked.
    """

    def __init__(
        self, conditional: Network, unconditional: Network, scale: float, generated: Tensor, mask_token: int
    ) -> None:
        self.conditional = conditional
        self.unconditional = unconditional
        self.scale = scale
        self.generated = generated
        self.mask_token = mask_token
        self.waits_for_blocks = conditional.waits_for_blocks
        self.rows_per_chunk = conditional.rows_per_chunk

    def states(self, tokens: Tensor, real: Tensor, queried: Tensor) -> Tensor:
        """Those of both runs, [N, 2, …]."""
        without_prompt = tokens.masked_fill(~self.generated, self.mask_token)
        guided = self.conditional.states(tokens, real, queried)
        return torch.stack([guided, self.unconditional.states(without_prompt, real, queried)], dim=1)

    def head(self, states: Tensor) -> Tensor:
        guided = self.conditional.head(states[:, 0]).float()
        unguided = self.unconditional.head(states[:, 1]).float()
        return unguided + (self.scale + 1) * (guided - unguided)

    def enter_block(self, start: int, stop: int) -> None:
        self.conditional.enter_block(start, stop)
        self.unconditional.enter_block(start, stop)

    def keep_rows(self, kept: Tensor) -> None:
        self.generated = self.generated[kept]
        self.conditional.keep_rows(kept)
        self.unconditional.keep_rows(kept)


# -------------------------------------------- keys and values of a block ---------------------------------------------


class DenoisingCache(Cache):
    """Keys and values of all layers; a forward over some columns overwrites those that were kept."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # layer → keys, values [B, heads, L, head size]
        self.first = 0  # the columns that the next forward computes
        self.stop = 0
        self.length = 0

    def compute(self, first: int, stop: int, length: int) -> None:
        """Set the columns that the next forward computes, of texts of that length."""
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
        """Where the computed columns begin."""
        return self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """All columns are attended to, from the first one on."""
        return self.length, 0

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these rows only."""
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
        """Begin a new block: the next forward computes everything."""
        self.block, self.forwards = (start, stop), 0

    def next_forward(self, length: int) -> tuple[DenoisingCache, int, int]:
        """The cache for the next forward and the columns that it computes, from … to before …."""
        refresh = self.forwards == 0 or (self.refresh_steps is not None and self.forwards % self.refresh_steps == 0)
        self.forwards += 1
        first, stop = 0, length
        if not refresh:
            first, end = self.block
            if self.shift:  # the column before the block guesses its first token
                first = max(0, first - 1)
            stop = end if self.kind == "dual" else length
        self.cache.compute(first, stop, length)
        return self.cache, first, stop

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.keep_rows(kept)
