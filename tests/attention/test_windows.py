"""Sliding windows: kept or ignored, alike in every back-end."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

import attention_patch
from attention_patch import (
    packed_inputs,
)
from tests.attention.models import (
    BACKENDS,
    VARIANTS,
    WINDOWED,
    assert_close,
    backends,
    hidden_states,
    patched,
    random_tokens,
    shared_model,
    variants,
)
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("sliding_window", ["keep", "ignore"])
@variants
def test_backends_agree(variant: str, sliding_window: str, mode: str) -> None:
    family, overrides = VARIANTS[variant]
    if family == "gemma2":
        overrides = overrides | {"attn_logit_softcapping": None}  # sdpa cannot
    model = tiny_model(family, **overrides)
    tokens, mask = random_tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, 7:] = 0
    outputs = []
    for backend in (*BACKENDS, "torch-flash"):
        if backend == "sdpa" and not model._supports_sdpa:
            continue  # Gemma-2 in newer versions of transformers, with a cap or without
        with patched(model, mode, backend, sliding_window=sliding_window), torch.no_grad():
            outputs.append(hidden_states(model, tokens, attention_mask=mask)[mask.bool()])
    for output in outputs[1:]:
        assert_close(output, outputs[0])


@pytest.mark.parametrize("variant", WINDOWED)
@backends
def test_ignored_window_equals_no_window(variant: str, backend: str) -> None:
    """As if no layer had a window: texts of one token fewer than the window tell keep and ignore not apart."""
    model = shared_model(variant)
    tokens = random_tokens(1, 20)
    wide = copy.deepcopy(model)
    for config in {id(m.config): m.config for m in wide.modules() if isinstance(m, PreTrainedModel)}.values():
        config.sliding_window = 100
    for module in attention_patch._attention_modules(wide):
        if "sliding_window" in vars(module) and module.sliding_window is not None:
            module.sliding_window = 100
    for inputs in ({}, packed_inputs([20]), {"attention_mask": torch.ones(1, 20)}):
        with patched(model, "bidirectional", backend, sliding_window="ignore"), torch.no_grad():
            ignored = hidden_states(model, tokens, **inputs)
        with patched(model, "bidirectional", backend), torch.no_grad():
            kept = hidden_states(model, tokens, **inputs)
        with patched(wide, "bidirectional", backend), torch.no_grad():
            assert_close(ignored, hidden_states(wide, tokens, **inputs))
        assert (ignored - kept).abs().max() > 1e-2
