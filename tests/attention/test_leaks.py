"""The leak matrix: change one token, see exactly which positions move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from attention_patch import (
    annealed_inputs,
    packed_inputs,
)
from tests.attention.models import (
    ANNEALED,
    LENGTHS,
    MODES,
    backends,
    hidden_states,
    layer_window,
    movements,
    one_layer_attends,
    patched,
    random_tokens,
    variants,
)
from tests.attention.reference import visible


def assert_moves(moved: torch.Tensor, expected: torch.Tensor) -> None:
    """Exactly the expected positions move; "moved" is far above float32's noise, "unmoved" far below."""
    assert (moved[~expected] < 1e-5).all(), f"leak: {moved[~expected].max():.2g}"
    assert (moved[expected] > 1e-4).all(), f"deaf: {moved[expected].min():.2g}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@backends
@variants
def test_leak(variant: str, backend: str, padding: str, mode: str) -> None:
    pads, real = (0 if padding == "none" else 3), 8
    first = pads if padding == "left" else 0
    attention_mask = torch.zeros(real + pads, dtype=torch.long)
    attention_mask[first : first + real] = 1
    draw = torch.rand(real + pads, real + pads, generator=torch.Generator().manual_seed(5)) < ANNEALED.get(mode, 0)
    for layer in (0, 1):
        model = one_layer_attends(variant, layer)
        with patched(model, "causal" if mode == "causal" else "bidirectional", backend), torch.no_grad():

            def states(batch: torch.Tensor, model: PreTrainedModel = model) -> torch.Tensor:
                padded: Any = {"attention_mask": attention_mask.expand(len(batch), -1)}
                if mode in ANNEALED:
                    padded = annealed_inputs(model, ANNEALED[mode], draw=draw, **padded)
                return hidden_states(model, batch, **padded)

            moved = movements(model, random_tokens(real + pads), states)
        expected = visible(real + pads, mode.split("-")[0], layer_window(model, layer), draw)
        expected &= attention_mask.bool()  # padding moves nothing
        queries = slice(first, first + real)
        expected |= torch.eye(real + pads, dtype=torch.bool)
        assert_moves(moved[queries], expected[queries])


@pytest.mark.parametrize("mode", MODES)
@backends
@variants
def test_packed_leak(variant: str, backend: str, mode: str) -> None:
    tokens = random_tokens(sum(LENGTHS))
    longest = max(LENGTHS)
    draw = torch.rand(longest, longest, generator=torch.Generator().manual_seed(5)) < ANNEALED.get(mode, 0)
    for layer in (0, 1):
        model = one_layer_attends(variant, layer)
        with patched(model, "causal" if mode == "causal" else "bidirectional", backend), torch.no_grad():
            packed = packed_inputs(LENGTHS)
            if mode in ANNEALED:
                packed = annealed_inputs(model, ANNEALED[mode], lengths=LENGTHS, draw=draw)

            def states(batch: torch.Tensor, model: PreTrainedModel = model, packed: Any = packed) -> torch.Tensor:
                return torch.cat([hidden_states(model, row[None], **packed) for row in batch])

            moved = movements(model, tokens, states)
        window = layer_window(model, layer)
        texts = [visible(length, mode.split("-")[0], window, draw) for length in LENGTHS]
        assert_moves(moved, torch.block_diag(*texts).bool())
