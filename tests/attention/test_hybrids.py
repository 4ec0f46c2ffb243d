"""Models that mix tokens by recurrence or convolution as well: causal, and every text of a packed row by itself."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

import attention_patch
from attention_patch import HYBRIDS, mask_inputs, packed_inputs, patch_attention
from tests.attention.models import (
    BACKENDS,
    apart,
    assert_close,
    assert_same_run,
    hidden_states,
    model_of_type,
    movements,
    patched,
    random_tokens,
    run_with_gradients,
)
from tests.attention.test_leaks import assert_moves
from tests.rounding import additions_in_network, assert_equal_up_to_rounding
from tests.tiny_models import HYBRID_FAMILIES


QWEN3_5 = HYBRID_FAMILIES["qwen3_5"]
DELTA_RULE = {name: QWEN3_5[name] for name in QWEN3_5 if name not in ("model_type", "rope_parameters")}
DELTA_RULE["num_key_value_heads"] = 2
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4, "mamba_n_groups": 1}
SHORT_CONVOLUTION = {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"num_key_value_heads": 2, "attn_layer_indices": [1], **MAMBA_2},
    "granitemoehybrid": {
        "num_key_value_heads": 2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        **MAMBA_2,
    },
    "jamba": {
        "num_key_value_heads": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "lfm2": SHORT_CONVOLUTION,
    "lfm2_moe": SHORT_CONVOLUTION
    | {"num_dense_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "olmo_hybrid": DELTA_RULE,
    "qwen3_5_moe_text": DELTA_RULE | EXPERTS,
    "qwen3_5_text": DELTA_RULE | {"rope_parameters": QWEN3_5["rope_parameters"]},
    "qwen3_next": DELTA_RULE | EXPERTS,
}  # fmt: skip
LENGTHS = [7, 2, 2, 1, 9, 150, 67]  # beyond what a gated delta rule takes at once
SMALL = [4, 2, 2, 1, 6]
hybrids = pytest.mark.parametrize("model_type", HYBRIDS)


@functools.cache
def shared_hybrid(model_type: str) -> PreTrainedModel:
    """A model that tests may patch but must leave as it was."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    return model_of_type(model_type, max_position_embeddings=512, **OVERRIDES[model_type])


def own_text(lengths: Sequence[int]) -> torch.Tensor:
    """[T, T]: keys of the query's text that do not lie ahead."""
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return (text[:, None] == text) & torch.ones(sum(lengths), sum(lengths), dtype=torch.bool).tril()


@hybrids
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_separate_forwards_and_gradients(model_type: str, backend: str) -> None:
    model, row = shared_hybrid(model_type), random_tokens(1, sum(LENGTHS))
    expected = run_with_gradients(model, lambda: apart(model, row, LENGTHS))
    with patched(model, "causal", backend):
        actual = run_with_gradients(model, lambda: hidden_states(model, row, **packed_inputs(LENGTHS)))
    assert_equal_up_to_rounding(actual[0], expected[0], additions_in_network(model.config, max(LENGTHS)))
    terms = additions_in_network(model.config, sum(LENGTHS), backward=True)
    for name, gradient in expected[1].items():
        assert_equal_up_to_rounding(actual[1].get(name), gradient, terms, name)


@hybrids
def test_packed_leak(model_type: str) -> None:
    model, tokens = shared_hybrid(model_type), random_tokens(sum(SMALL))
    packed = packed_inputs(SMALL)
    with patch_attention(model, "causal"), torch.no_grad():
        moved = movements(
            model, tokens, lambda batch: torch.cat([hidden_states(model, row[None], **packed) for row in batch])
        )
    assert_moves(moved, own_text(SMALL))


@hybrids
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_separate_forwards(model_type: str, side: str) -> None:
    model = shared_hybrid(model_type)
    texts = [random_tokens(1, length, seed=length) for length in (9, 4)]
    batch, mask = torch.full((2, 9), 2), torch.zeros(2, 9, dtype=torch.long)
    for index, text in enumerate(texts):
        place = slice(0, text.shape[1]) if side == "right" else slice(9 - text.shape[1], 9)
        batch[index, place], mask[index, place] = text[0], 1
    with patch_attention(model, "causal"), torch.no_grad():
        states = hidden_states(model, batch, attention_mask=mask)
        for index, text in enumerate(texts):
            assert_close(states[index][mask[index].bool()], hidden_states(model, text)[0])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@hybrids
def test_gradient_checkpointing(model_type: str, reentrant: bool) -> None:
    """Another row runs between forward and backward: the layers that run again must not take its lengths."""
    model = copy.deepcopy(shared_hybrid(model_type)).train()
    model.enable_input_require_grads()
    row, other = random_tokens(1, sum(SMALL)), random_tokens(1, 7, seed=1)

    def states() -> torch.Tensor:
        found = hidden_states(model, row, **packed_inputs(SMALL))
        with torch.no_grad():
            hidden_states(model, other, **packed_inputs([3, 4]))
        return found

    with patch_attention(model, "causal"):
        plain = run_with_gradients(model, states)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed = run_with_gradients(model, states)
    assert_same_run(checkpointed, plain)


@hybrids
def test_what_reads_forward_only_cannot_be_bidirectional(model_type: str) -> None:
    model = shared_hybrid(model_type)
    before = copy.deepcopy(vars(model.config))
    with pytest.raises(ValueError, match=r"which reads forward only: its attention .* can only be causal"):
        patch_attention(model)
    assert vars(model.config) == before


@hybrids
def test_masks_and_unannounced_texts_are_refused(model_type: str) -> None:
    model = shared_hybrid(model_type)
    row, allowed = random_tokens(1, 6), torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    allowed[..., 3:, :3] = False
    again = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for backend in ("eager", "sdpa"):
        with patched(model, "causal", backend), torch.no_grad():
            with pytest.raises(ValueError, match="know no mask of who sees whom"):
                hidden_states(model, row, **mask_inputs(model, allowed))
            with pytest.raises(ValueError, match="`position_ids` start again"):
                hidden_states(model, row, position_ids=again)


@hybrids
def test_restored_as_it_was(model_type: str) -> None:
    model = copy.deepcopy(shared_hybrid(model_type))
    row = random_tokens(1, 9)

    def changed() -> list[str]:
        modules = model.named_modules()
        return [name for name, module in modules if "forward" in vars(module) or module._forward_pre_hooks]

    untouched = changed()  # norms whose kernels transformers may exchange
    with torch.no_grad():
        before = hidden_states(model, row)
        with patch_attention(model, "causal"), patch_attention(model, "causal"):  # replaces the first
            copied = copy.deepcopy(model)
            assert len(changed()) > len(untouched)
            inside = hidden_states(model, row)
        assert torch.equal(inside, before)
        assert torch.equal(hidden_states(model, row), before)
        assert changed() == untouched
        # a copy stands by itself: other weights, the same patch
        for parameter in copied.parameters():
            parameter.mul_(0.5)
        packed = hidden_states(copied, row, **packed_inputs([4, 5]))
        assert torch.equal(hidden_states(model, row), before)
        assert_close(packed, apart(copied, row, [4, 5]))


def test_threads_keep_their_rows_apart() -> None:
    model, lengths = shared_hybrid("qwen3_5_text"), ([4, 5], [1, 8], [2, 3, 4], [9])
    row = random_tokens(1, 9)
    with patch_attention(model, "causal"), torch.no_grad():
        expected = [apart(model, row, each) for each in lengths]
        wrong: list[int] = []

        def run(index: int) -> None:
            with torch.no_grad():
                for _ in range(20):
                    states = hidden_states(model, row, **packed_inputs(lengths[index]))
                    if (states - expected[index]).abs().max() > 1e-4:
                        wrong.append(index)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(lengths))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_short_texts_share_a_batch_and_no_text_becomes_much_longer() -> None:
    groups = attention_patch._groups_of_like_length([1, 500, 60, 300, 128, 90])
    assert groups == [[1, 3], [4, 5, 2, 0]]


@hybrids
def test_one_call_a_layer_under_zero_3(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with other lengths must gather weights equally often, or they wait for each other for ever."""
    model, row = shared_hybrid(model_type), random_tokens(1, sum(LENGTHS))
    calls: list[int] = []
    with patch_attention(model, "causal"), torch.no_grad():
        mixer = attention_patch._mixers(model)[0]
        first_layer = next(module for module in mixer.modules() if isinstance(module, torch.nn.Linear))
        hook = first_layer.register_forward_hook(lambda *_: calls.append(1))
        in_groups = hidden_states(model, row, **packed_inputs(LENGTHS))
        assert len(calls) > 1
        calls.clear()
        monkeypatch.setattr(attention_patch, "is_deepspeed_zero3_enabled", lambda: True)
        at_once = hidden_states(model, row, **packed_inputs(LENGTHS))
        hook.remove()
    assert len(calls) == 1
    assert_equal_up_to_rounding(at_once, in_groups, additions_in_network(model.config, max(LENGTHS)))


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_5_text"])
def test_compiled_layers(model_type: str) -> None:
    """Traced, not compiled: the same numbers for rows of other lengths."""
    model = copy.deepcopy(shared_hybrid(model_type))
    with patch_attention(model, "causal"), torch.no_grad():
        rows = [(SMALL, random_tokens(1, sum(SMALL))), ([3, 9], random_tokens(1, 12))]
        expected = [hidden_states(model, row, **packed_inputs(lengths)) for lengths, row in rows]
        for layer in model.layers:
            layer.compile(backend="eager", dynamic=True)
        for states, (lengths, row) in zip(expected, rows, strict=True):
            assert_close(hidden_states(model, row, **packed_inputs(lengths)), states)
