"""A packed row gives what its texts give apart, and is refused where its lengths are not announced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attention_patch import (
    annealed_inputs,
    annealed_mask,
    mask_inputs,
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    BACKENDS,
    BIDIRECTIONAL,
    LENGTHS,
    apart,
    assert_close,
    assert_same_run,
    backends,
    hidden_states,
    patched,
    random_tokens,
    run_with_gradients,
    shared_model,
    skip_without_sdpa,
    variants,
)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
@variants
def test_packed_equals_separate_forwards(variant: str, backend: str, mode: str) -> None:
    if backend == "torch-flash" and variant == "gemma2":
        pytest.skip("torch's kernel has no soft-capping: test_torch_kernel_refuses_what_it_cannot_do")
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    dense = "eager" if variant == "gemma2" and backend != "sdpa" else "sdpa"  # sdpa drops Gemma-2's soft-capping
    with patched(model, mode, dense):
        expected = run_with_gradients(model, lambda: apart(model, tokens, LENGTHS))
    with patched(model, mode, backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
    assert_same_run(packed, expected)


@backends
@variants
def test_patch_of_the_models_own_mode_equals_the_untouched_model(variant: str, backend: str) -> None:
    model = shared_model(variant)
    dense = "eager" if variant == "gemma2" and backend != "sdpa" else "sdpa"
    tokens = random_tokens(1, sum(LENGTHS))
    if backend == "sdpa":
        skip_without_sdpa(model)
    implementation = model.config._attn_implementation
    model.set_attn_implementation(dense)
    untouched = run_with_gradients(model, lambda: apart(model, tokens, LENGTHS))
    model.set_attn_implementation(implementation)
    with patched(model, "bidirectional" if variant in BIDIRECTIONAL else "causal", backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
    assert_same_run(packed, untouched)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
@variants
def test_padded_equals_packed(variant: str, backend: str, padding: str, mode: str) -> None:
    if backend == "torch-flash" and variant == "gemma2":
        pytest.skip("torch's kernel has no soft-capping: test_torch_kernel_refuses_what_it_cannot_do")
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    longest = max(LENGTHS)
    columns = torch.arange(longest)
    sizes = torch.tensor(LENGTHS)[:, None]
    mask = columns < sizes if padding == "right" else columns >= longest - sizes
    batch = torch.full((len(LENGTHS), longest), 2)
    batch[mask] = tokens[0]
    inputs = {"attention_mask": mask.long(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with patched(model, mode, backend):
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **packed_inputs(LENGTHS)))
        padded = run_with_gradients(model, lambda: hidden_states(model, batch, **inputs)[mask][None])
    assert_same_run(padded, packed)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@backends
@variants
def test_annealed_packed_equals_annealed_padded(variant: str, backend: str, ratio: float) -> None:
    """Texts of a packed row read the same draw as the rows of a padded batch; a [T, T] mask says the same."""
    model = shared_model(variant).base_model
    tokens = random_tokens(1, sum(LENGTHS))
    longest = max(LENGTHS)
    draw = torch.rand(longest, longest, generator=torch.Generator().manual_seed(2)) < ratio
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    batch = torch.full((len(LENGTHS), longest), 2)
    batch[mask] = tokens[0]
    with patched(model, "bidirectional", backend):
        inputs = annealed_inputs(model, ratio, attention_mask=mask.long(), draw=draw)
        padded = run_with_gradients(model, lambda: hidden_states(model, batch, **inputs)[mask][None])
        inputs = annealed_inputs(model, ratio, lengths=LENGTHS, draw=draw)
        packed = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        full = mask_inputs(model, annealed_mask(sum(LENGTHS), ratio, draw=draw, lengths=LENGTHS))
        inputs = {"position_ids": packed_inputs(LENGTHS)["position_ids"]} | full
        dense = run_with_gradients(model, lambda: hidden_states(model, tokens, **inputs))
        with_lengths = hidden_states(model, tokens, **packed_inputs(LENGTHS) | full).detach()
    assert_same_run(packed, padded)
    assert_same_run(dense, padded)
    assert_close(with_lengths, padded[0])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "gemma3", "gpt2"])
def test_packed_row_builds_no_square_mask(variant: str, mode: str, backend: str) -> None:
    """No tensor of a forward and backward over T tokens has T x T elements."""
    lengths = [11, 11, 40, 3] * 6
    total = sum(lengths)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    model = shared_model(variant).base_model
    with patched(model, mode, backend), Largest() as largest:
        hidden_states(model, random_tokens(1, total), **packed_inputs(lengths)).sum().backward()
    model.zero_grad()
    assert 0 < largest.elements < total * total // 2


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "torch-flash"])
def test_unannounced_packing_is_refused(backend: str, mode: str) -> None:
    model = shared_model("llama").base_model
    positions = packed_inputs(LENGTHS)["position_ids"]
    with patched(model, mode, backend), torch.no_grad():
        if mode == "bidirectional" or backend == "torch-flash":
            with pytest.raises(ValueError, match=r"packed_inputs\(lengths\)"):
                hidden_states(model, random_tokens(1, sum(LENGTHS)), position_ids=positions)
        else:  # transformers' causal masks do read the positions
            tokens = random_tokens(1, sum(LENGTHS))
            assert_close(hidden_states(model, tokens, position_ids=positions), apart(model, tokens, LENGTHS))


def test_lengths_that_do_not_cover_the_row_are_refused() -> None:
    model = shared_model("llama")
    with patch_attention(model), pytest.raises(ValueError, match="counts 5 tokens but the batch is 1 x 6"):
        hidden_states(model, random_tokens(1, 6), **packed_inputs([2, 3]) | {"position_ids": torch.arange(6)[None]})


def test_lengths_follow_the_tensor() -> None:
    """Lengths come from `cu_seq_lens` itself, also when it was made elsewhere or changed in place."""
    model = shared_model("llama").base_model
    tokens = random_tokens(1, 9)
    with patch_attention(model), torch.no_grad():
        inputs = packed_inputs([4, 5])
        ends = inputs["cu_seq_lens_q"]
        first = hidden_states(model, tokens, **inputs)
        other = {"position_ids": packed_inputs([6, 3])["position_ids"]}
        ends[1] = 6
        changed = hidden_states(model, tokens, **inputs | other)
        assert_close(changed, apart(model, tokens, [6, 3]))
        inputs |= other | dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 6, 9]))
        assert_close(hidden_states(model, tokens, **inputs), changed)
        assert (changed - first).abs().max() > 1e-2


def test_packed_inputs_are_refused_by_an_unpatched_model() -> None:
    model = shared_model("llama")
    with pytest.raises(RuntimeError):
        hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))
