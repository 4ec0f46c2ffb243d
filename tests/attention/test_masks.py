"""Masks: given directly, annealed, and the options that describe them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from attention_patch import (
    annealed_inputs,
    annealed_mask,
    annealing_ratio,
    mask_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    assert_close,
    backends,
    hidden_states,
    patched,
    random_tokens,
    shared_model,
    variants,
)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@variants
def test_boolean_mask_given_directly(variant: str, backend: str) -> None:
    """eager adds masks to scores, where a boolean one would be silently wrong."""
    model = shared_model(variant)
    tokens = random_tokens(1, 3)  # within every window
    allowed = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])[None, None]
    with patched(model, "bidirectional", backend), torch.no_grad():
        direct = hidden_states(model, tokens, attention_mask=allowed)
        assert_close(direct, hidden_states(model, tokens, **mask_inputs(model, allowed)))
        assert (direct - hidden_states(model, tokens)).abs().max() > 1e-2


@backends
def test_a_query_that_sees_nothing_stays_finite(backend: str) -> None:
    model = shared_model("mistral").base_model
    mask = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1], [1] * 8])
    with patched(model, "bidirectional", backend):
        inputs = annealed_inputs(model, 0.2, attention_mask=mask)
        seen = inputs["attention_mask"]
        seen = seen == 0 if seen.is_floating_point() else seen
        assert seen[0, 0, 0].nonzero().tolist() == [[0]]  # itself, although it is padding
        states = hidden_states(model, random_tokens(2, 8), **inputs)
        states[mask.bool()].sum().backward()
    assert torch.isfinite(states).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_annealed_mask_is_drawn_from_its_generator() -> None:
    def mask(seed: int) -> torch.Tensor:
        return annealed_mask(40, 0.3, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    assert torch.equal(torch.get_rng_state(), before)
    above = mask(1)[0, 0][torch.ones(40, 40).triu(1).bool()].float().mean()
    assert 0.25 < above < 0.35  # 780 draws: 3 standard errors


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: annealed_mask(3, 1.5), "`ratio`"),
        (lambda: annealed_mask(3, 0.5, lengths=[1, 1]), "`lengths` must add up to the row's 3 tokens, got 2"),
        (lambda: annealed_mask(3, 0.5, draw=torch.ones(2, 2)), "`draw`"),
        (lambda: annealing_ratio(0, 0), "`anneal_steps`"),
        (lambda: packed_inputs([2, 0]), "`lengths`"),
        (lambda: packed_inputs([]), "`lengths`"),
        (lambda: mask_inputs(shared_model("llama"), torch.ones(2, 2, dtype=torch.bool)), "`allowed`"),
        (lambda: mask_inputs(shared_model("llama"), torch.ones(1, 1, 2, 2)), "`allowed`"),
        (lambda: annealed_inputs(shared_model("llama"), 0.5, lengths=[2]), "`mode` bidirectional"),
        (lambda: patch_attention(shared_model("llama"), "both"), "`mode` must be one of bidirectional, causal"),  # type: ignore[arg-type]
        (lambda: patch_attention(shared_model("llama"), sliding_window="drop"), "`sliding_window`"),  # type: ignore[arg-type]
        (lambda: patch_attention(shared_model("llama"), backend="flex"), "`backend` must be one of"),  # type: ignore[arg-type]
        (lambda: patch_attention(nn.Linear(2, 2)), "no transformers model"),
    ],
)
def test_wrong_options_are_named(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
