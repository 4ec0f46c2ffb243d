"""Models, tokens and comparisons that the tests of attention share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

import attention_patch
from attention_patch import (
    patch_attention,
)
from tests.attention.reference import FlashReference, flash_on_cpu, torch_kernel_on_cpu
from tests.tiny_models import FAMILIES, tiny_model


# Every family as it is built by default, and two that have a sliding window only when asked.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "phi3-window": ("phi3", {"sliding_window": 3}),
}
BIDIRECTIONAL = ("dream", "llada")  # without a patch
WINDOWED = ("mistral", "gemma2", "gemma3", "qwen2-window", "phi3-window")
BACKENDS = ("eager", "sdpa", "flash")
ANNEALED = {"annealed-0": 0.0, "annealed-0.5": 0.5, "annealed-1": 1.0}
MODES = ("causal", "bidirectional", *ANNEALED)
LENGTHS = [7, 2, 2, 1, 9]  # texts of a packed row: longer than every window, a run of equals, a single token

variants = pytest.mark.parametrize("variant", VARIANTS)
backends = pytest.mark.parametrize("backend", BACKENDS)


@functools.cache
def shared_model(variant: str) -> PreTrainedModel:
    """A model that tests may patch but must leave as it was."""
    family, overrides = VARIANTS[variant]
    return tiny_model(family, **overrides)


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def model_of_type(model_type: str, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES | overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model.eval()


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
            name = {"gpt2": "c_proj", "llada": "attn_out"}.get(variant, "o_proj")
            nn.init.zeros_(module.get_parameter(f"{name}.weight"))
    return model


def skip_without_sdpa(model: nn.Module) -> None:
    """Gemma-2 caps its scores, which newer versions of transformers refuse under sdpa; older ones drop the cap."""
    inner = attention_patch._transformers_model(model)
    if not inner._supports_sdpa:
        pytest.skip(f"this transformers has no sdpa for {type(inner).__name__}")


@contextmanager
def patched(model: nn.Module, mode: str, backend: str, **options: Any) -> Iterator[FlashReference | None]:
    """The model on a back-end; `flash` is the reference of the flash-attn functions, `torch-flash` that of torch's."""
    if backend == "sdpa":
        skip_without_sdpa(model)
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


def run_with_gradients(model: PreTrainedModel, forward: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The hidden states that `forward` gives as one row of tokens, and the gradients of a fixed scalar of them."""
    model.zero_grad()
    states = forward()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return states.detach(), gradients


def assert_same_run(actual: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]]) -> None:
    assert_close(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_close(actual[1][name], gradient)


def apart(model: PreTrainedModel, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """One forward per text, joined to the packed row."""
    return torch.cat([hidden_states(model, text) for text in tokens.split(list(lengths), dim=1)], dim=1)


def movements(model: PreTrainedModel, tokens: torch.Tensor, inputs_of: Any) -> torch.Tensor:
    """[L, L]: how far position q moves when the token at k is changed, one forward for all k."""
    length = len(tokens)
    batch = tokens.repeat(length + 1, 1)  # the last row stays as it is
    index = torch.arange(length)
    batch[index, index] = 3 + (tokens + 100) % 297
    states = inputs_of(batch)
    assert torch.isfinite(states).all()
    return (states[:-1] - states[-1]).abs().amax(dim=-1).T
