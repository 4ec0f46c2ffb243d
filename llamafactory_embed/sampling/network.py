"""What the denoising loop asks: the states of some positions of a canvas, and their logits.

The two are apart, so that the loop can go through a vocabulary of 150 thousand in chunks of positions.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attention_patch import SlidingWindow, mask_inputs, patch_attention

from ..model.packed import find_decoder
from ..model.token_loss import LanguageModelHead
from .cache import CachePlan, DenoisingCache
from .canvas import position_ids


class Network(Protocol):
    """Anything that guesses tokens; a language model, or a formula in a test."""

    waits_for_blocks: bool
    """Whether all rows must work at the same block: what a cache of a batch needs."""

    rows_per_chunk: int
    """For how many states to ask the head at a time."""

    def states(self, tokens: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
        """What the guesses for the N `wanted` positions [B, L] of `tokens` [B, L] are made from, [N, …], row after
        row; `real` is False at padding."""

    def head(self, states: Tensor) -> Tensor:
        """Logits [n, V] of some of these states."""

    def enter_block(self, start: int, stop: int) -> None:
        """From now on, only the columns from `start` to before `stop` change."""

    def keep_rows(self, kept: Tensor) -> None:
        """Only these rows [B] (bool) go on."""


class LanguageModelNetwork:
    """A language model of transformers, with LoRA layers or without, its attention made bidirectional.

    The head runs at wanted positions only. With `block_size` no position sees a block behind its own. With `shift`
    (models that were adapted from next-token prediction) the logits of a position are those that the model gives one
    position earlier; the first position uses its own.
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
        patch = patch_attention(model, "bidirectional", sliding_window=sliding_window)
        if self.plan is not None and patch.backend.startswith("flash"):
            # varlen kernels know no cache with holes
            patch_attention(model, "bidirectional", sliding_window=sliding_window, backend="sdpa")

    def states(self, tokens: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
        first, hidden = self._hidden(tokens, real)  # [B, Q, d], of the columns from `first` on
        rows, columns = wanted.nonzero(as_tuple=True)
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
        if self.block_size is None:
            return {"attention_mask": None if bool(real.all()) else real.long()}
        blocks = positions // self.block_size  # [B, L]
        allowed = (blocks[:, None, :] <= blocks[:, :, None]) & real[:, None, :]  # [B, L, L]
        (mask,) = mask_inputs(self.decoder, allowed[:, None]).values()
        if isinstance(mask, dict):  # of layers with and without a sliding window
            return {"attention_mask": {kind: each[:, :, first:stop] for kind, each in mask.items()}}
        return {"attention_mask": mask[:, :, first:stop]}


class GuidedNetwork:
    """Classifier-free guidance as in LLaDA: away from what the network would say without everything that was given.

    u + (scale + 1)(c - u), where c sees the canvas and u sees it with all given tokens masked.
    """

    def __init__(self, conditional: Network, unconditional: Network, scale: float, generated: Tensor, mask_token: int):
        self.conditional = conditional
        self.unconditional = unconditional
        self.scale = scale
        self.generated = generated
        self.mask_token = mask_token
        self.waits_for_blocks = conditional.waits_for_blocks
        self.rows_per_chunk = conditional.rows_per_chunk

    def states(self, tokens: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
        """Those of both runs, [N, 2, …]."""
        without_prompt = tokens.masked_fill(~self.generated, self.mask_token)
        guided = self.conditional.states(tokens, real, wanted)
        return torch.stack([guided, self.unconditional.states(without_prompt, real, wanted)], dim=1)

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
