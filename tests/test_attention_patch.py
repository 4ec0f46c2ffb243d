"""The leak matrix of attention_patch, and the equalities that everything above it relies on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, PreTrainedModel

import attention_patch
from attention_patch import (
    annealed_inputs,
    annealed_mask,
    annealing_ratio,
    mask_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention_reference import FlashReference, flash_on_cpu, torch_kernel_on_cpu, visible
from tests.tiny_models import FAMILIES, tiny_model


# Every family as it is built by default, and two that have a sliding window only when asked.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "phi3-window": ("phi3", {"sliding_window": 3}),
}
WINDOWED = ("mistral", "gemma2", "gemma3", "qwen2-window", "phi3-window")
BACKENDS = ("eager", "sdpa", "flash")
ANNEALED = {"annealed-0": 0.0, "annealed-0.5": 0.5, "annealed-1": 1.0}
MODES = ("causal", "bidirectional", *ANNEALED)
LENGTHS = [7, 2, 2, 1, 9]  # texts of a packed row: longer than every window, a run of equals, a single token

variants = pytest.mark.parametrize("variant", VARIANTS)
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def shared_model(variant: str) -> PreTrainedModel:
    """A model that tests may patch but must leave as it was."""
    family, overrides = VARIANTS[variant]
    return tiny_model(family, **overrides)


def layer_window(model: PreTrainedModel, layer: int) -> int | None:
    """The sliding window of a layer, read off the config."""
    config = model.config
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] == "full_attention":
        return None
    return getattr(config, "sliding_window", None)


@functools.cache
def one_layer_attends(variant: str, layer: int) -> PreTrainedModel:
    """The base model of a variant where only this layer's attention moves anything between positions."""
    model = copy.deepcopy(shared_model(variant)).base_model
    for index, module in enumerate(attention_patch._attention_modules(model)):
        if index != layer:
            nn.init.zeros_(dict(module.named_parameters())["c_proj.weight" if "gpt2" in variant else "o_proj.weight"])
    return model


@contextmanager
def patched(model: nn.Module, mode: str, backend: str, **options: Any) -> Iterator[FlashReference | None]:
    """The model on a back-end; `flash` is the reference of the flash-attn functions, `torch-flash` that of torch's."""
    kernels = {"flash": flash_on_cpu, "torch-flash": torch_kernel_on_cpu}.get(backend, nullcontext)
    with kernels() as reference:
        name = "flash_attention_2" if "flash" in backend else backend
        with patch_attention(model, mode, backend=name, **options):  # type: ignore[arg-type]
            yield reference


def embeddings_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.get_input_embeddings()(tokens)


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model.base_model(input_ids=tokens, use_cache=False, **inputs).last_hidden_state


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal within the tolerance, relative to the largest value where that exceeds 1."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


# ---------------------------------------------------------------------------------------------------------------
# The leak matrix: change one token, see exactly which positions move
# ---------------------------------------------------------------------------------------------------------------


def movements(model: PreTrainedModel, tokens: torch.Tensor, inputs_of: Any) -> torch.Tensor:
    """[L, L]: how far position q moves when the token at k is changed, one forward for all k."""
    length = len(tokens)
    batch = tokens.repeat(length + 1, 1)  # the last row stays as it is
    index = torch.arange(length)
    batch[index, index] = 3 + (tokens + 100) % 297
    states = inputs_of(batch)
    assert torch.isfinite(states).all()
    return (states[:-1] - states[-1]).abs().amax(dim=-1).T


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
