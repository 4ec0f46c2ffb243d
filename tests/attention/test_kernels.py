"""What flash_attention_2 is given, soft capping, compiled models, and the same on real kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.import_utils import is_torch_greater_or_equal

import attention_patch
from attention_patch import (
    annealed_inputs,
    mask_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    LENGTHS,
    VARIANTS,
    assert_close,
    hidden_states,
    layer_window,
    patched,
    random_tokens,
    shared_model,
    variants,
)
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("backend", ["flash", "torch-flash"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "gemma3", "gpt2"])
def test_flash_is_given_the_texts_and_the_window(variant: str, mode: str, backend: str) -> None:
    model = shared_model(variant)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, 7:] = 0
    with patched(model, mode, backend) as reference, torch.no_grad():
        assert reference is not None
        hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))
        packed, reference.calls = reference.calls, []
        hidden_states(model, random_tokens(3, 9), attention_mask=mask)
        padded, reference.calls = reference.calls, []
        hidden_states(model, random_tokens(3, 9))
        full = reference.calls
    causal = mode == "causal"
    assert len(packed) == len(padded) == len(full) == 2
    for layer, calls in enumerate(zip(packed, padded, full, strict=True)):
        window = layer_window(model, layer)
        behind = -1 if window is None else window - causal
        for call in calls:
            assert call.causal == causal
            assert call.window[0] == behind
            assert causal or call.window[1] == behind
        assert calls[0].ends == [0, 7, 9, 11, 12, 21]
        assert calls[1].ends == [0, 9, 14, 21]
        assert calls[0].longest == calls[1].longest == 9


def test_flash_runs_a_mask_through_sdpa_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = shared_model("llama")
    tokens, ones = random_tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    attention_patch.logger.warning_once.__func__.cache_clear()
    with patched(model, "bidirectional", "flash") as reference, torch.no_grad():
        assert reference is not None
        for _ in range(2):
            hidden_states(model, tokens, **annealed_inputs(model, 0.5, attention_mask=ones))
        assert not reference.calls
        hidden_states(model, tokens, **annealed_inputs(model, 1, attention_mask=ones))
        assert len(reference.calls) == 2
    assert len([record for record in caplog.records if "takes no attention mask" in record.message]) == 1


@pytest.mark.parametrize("unable", [{"attn_logit_softcapping": 5.0}, {"attention_dropout": 0.1}])
def test_torch_kernel_refuses_what_it_cannot_do(unable: dict[str, Any]) -> None:
    model = tiny_model("gemma2", **{"attn_logit_softcapping": None} | unable).train()
    with patched(model, "bidirectional", "torch-flash"), pytest.raises(ValueError, match="install flash-attn"):
        hidden_states(model, random_tokens(1, 4))


@pytest.mark.parametrize("backend", ["eager", "flash"])
def test_soft_capping_is_kept(backend: str) -> None:
    """Gemma-2 with a cap low enough to matter: eager, flash and the mask's way out of flash agree."""
    model = tiny_model("gemma2", attn_logit_softcapping=0.5)
    tokens, ones = random_tokens(1, 9), torch.ones(1, 9, dtype=torch.long)
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        model.config.is_causal = False
        expected = hidden_states(model, tokens)
        with patched(model, "bidirectional", backend):
            assert_close(hidden_states(model, tokens, attention_mask=ones), expected)
            assert_close(hidden_states(model, tokens, **packed_inputs([9])), expected)
            assert_close(hidden_states(model, tokens, **mask_inputs(model, everything)), expected)
        if model._supports_sdpa:  # in older versions of transformers, which drop the cap there
            with patched(model, "bidirectional", "sdpa"):
                assert (hidden_states(model, tokens) - expected).abs().max() > 1e-2


def test_sdpa_is_not_given_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers refuses it from 5.21 on."""

    def attend(*args: Any, **options: Any) -> tuple[torch.Tensor, None]:
        assert "softcap" not in options
        return sdpa_attention_forward(*args, **options)

    monkeypatch.setattr(attention_patch, "sdpa_attention_forward", attend)
    module = shared_model("llama").base_model.layers[0].self_attn
    states = tuple(torch.randn(1, heads, 5, 8) for heads in (4, 2, 2))
    plain, _ = attention_patch._sdpa(module, states, None, False)
    capped, _ = attention_patch._sdpa(module, states, None, False, softcap=5.0)
    assert torch.equal(capped, plain)


@pytest.mark.skipif(
    not is_torch_greater_or_equal("2.7"), reason="torch 2.6 compiles no whole model of transformers, patched or not"
)
def test_compiled() -> None:
    """Dynamo traces the patched functions; without a code generator, so that the test needs no compiler."""
    model = tiny_model("llama", num_hidden_layers=1).base_model
    tokens, mask = random_tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    with patch_attention(model), torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        for inputs in ({"attention_mask": mask}, annealed_inputs(model, 0.5, attention_mask=mask)):
            assert_close(compiled(tokens, **inputs)[0], model(tokens, **inputs)[0])
        row = random_tokens(1, sum(LENGTHS))
        inputs = packed_inputs(LENGTHS)
        assert_close(compiled(row, **inputs)[0], model(row, **inputs)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@variants
def test_flash_on_a_gpu(variant: str, mode: str) -> None:
    """Packed and padded on the flash kernel at hand, against sdpa in the same 16 bits."""
    if variant == "gemma2" and not attention_patch.is_flash_attn_2_available():
        pytest.skip("torch's kernel has no soft-capping")
    family, overrides = VARIANTS[variant]
    model = tiny_model(family, **overrides).base_model.to("cuda", torch.bfloat16)
    tokens = random_tokens(1, sum(LENGTHS)).cuda()
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).cuda()
    batch = torch.full(mask.shape, 2, device="cuda")
    batch[mask] = tokens[0]

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        packed = hidden_states(model, tokens, **packed_inputs(LENGTHS, "cuda"))
        padded = hidden_states(model, batch, attention_mask=mask.long())[mask][None]
        return packed, padded

    with torch.no_grad(), patch_attention(model, mode, backend="sdpa"):
        expected = states()[0]
    with patch_attention(model, mode, backend="flash_attention_2"):
        packed, padded = states()
        packed.sum().backward()
    assert (packed - expected).abs().mean() < 0.02
    assert (padded - expected).abs().mean() < 0.02
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
