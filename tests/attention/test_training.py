"""Training through a patched model: PEFT, gradient checkpointing, DDP."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attention_patch import (
    annealed_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    BACKENDS,
    LENGTHS,
    assert_close,
    assert_same_run,
    hidden_states,
    patched,
    random_tokens,
    run_with_gradients,
    shared_model,
)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("kind", ["packed", "annealed", "annealed-packed"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["llama", "gemma3", "gpt2"])
def test_gradient_checkpointing(variant: str, backend: str, kind: str, reentrant: bool) -> None:
    model = copy.deepcopy(shared_model(variant).base_model).train()
    model.enable_input_require_grads()
    lengths = LENGTHS if "packed" in kind else [sum(LENGTHS)]
    draw = torch.rand(max(lengths), max(lengths), generator=torch.Generator().manual_seed(3)) < 0.3
    tokens = random_tokens(1, sum(LENGTHS))
    with patched(model, "bidirectional", backend):
        if kind == "packed":
            inputs = packed_inputs(lengths)
        elif kind == "annealed-packed":
            inputs = annealed_inputs(model, 0.3, lengths=lengths, draw=draw)
        else:
            inputs = annealed_inputs(model, 0.3, attention_mask=torch.ones_like(tokens), draw=draw)
        plain = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
    assert_same_run(checkpointed, plain)


@pytest.mark.parametrize("variant", ["llama", "gemma3", "gpt2"])
def test_under_peft(variant: str) -> None:
    """Patched around or inside the adapter: same numbers, and only the adapter has gradients."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(shared_model(variant))
    tokens = random_tokens(1, sum(LENGTHS))
    targets = ["c_attn"] if variant == "gpt2" else ["q_proj", "v_proj"]
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with patch_attention(wrapped) as patch:
        assert patch.model is model
        row = wrapped(input_ids=tokens, **packed_inputs(LENGTHS)).logits
        texts = [wrapped(input_ids=text).logits for text in tokens.split(LENGTHS, dim=1)]
        assert_close(row, torch.cat(texts, dim=1))
        row.sum().backward()
        causal = wrapped(input_ids=tokens).logits
    assert {name for name, p in wrapped.named_parameters() if p.grad is not None} == {
        name for name, _ in wrapped.named_parameters() if "lora" in name
    }
    assert (wrapped(input_ids=tokens).logits - causal).abs().max() > 1e-2  # restored


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_ddp(backend: str, tmp_path: Path) -> None:
    model = copy.deepcopy(shared_model("gemma3"))
    tokens = random_tokens(1, sum(LENGTHS))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with patched(model, "bidirectional", backend):
            expected = run_with_gradients(model, lambda: model(tokens, **packed_inputs(LENGTHS)).logits)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with patched(wrapped, "bidirectional", backend):
            actual = run_with_gradients(model, lambda: wrapped(tokens, **packed_inputs(LENGTHS)).logits)
    finally:
        torch.distributed.destroy_process_group()
    assert_same_run(actual, expected)
