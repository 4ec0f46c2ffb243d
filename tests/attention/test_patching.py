"""A patch is undone, replaced, copied and saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from attention_patch import (
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    BIDIRECTIONAL,
    assert_close,
    hidden_states,
    random_tokens,
    shared_model,
    variants,
)


def fingerprint(model: PreTrainedModel) -> Any:
    """Everything a patch touches."""
    flags = [{k: v for k, v in vars(m).items() if isinstance(v, (bool, int, type(None)))} for m in model.modules()]
    return flags, dict(vars(model.config)), list(vars(model))


@variants
def test_restored_model_is_the_same(variant: str) -> None:
    model = shared_model(variant)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9)
    mask[0, :3] = 0
    before = copy.deepcopy(fingerprint(model))
    expected = model(tokens, attention_mask=mask).logits
    modes = ("bidirectional", "causal")[:: -1 if variant in BIDIRECTIONAL else 1]
    for backend in ("eager", "sdpa"):
        patch = patch_attention(model, modes[0], backend=backend, sliding_window="ignore")  # type: ignore[arg-type]
        assert (model(tokens, attention_mask=mask).logits - expected).abs().max() > 1e-2
        patch_attention(model, modes[1], backend="sdpa").restore()  # type: ignore[arg-type]
        assert fingerprint(model) == before
        patch.restore()  # replaced: nothing to undo
        assert fingerprint(model) == before
        assert torch.equal(model(tokens, attention_mask=mask).logits, expected)


def test_a_second_patch_replaces_the_first() -> None:
    model = shared_model("mistral")
    tokens = random_tokens(1, 9)
    with torch.no_grad():
        causal = hidden_states(model, tokens)
        with patch_attention(model, sliding_window="ignore"):
            open_ = hidden_states(model, tokens)
            with patch_attention(model, "causal") as second:
                assert second.mode == "causal"
                assert_close(hidden_states(model, tokens), causal)
        assert torch.equal(hidden_states(model, tokens), causal)
        with patch_attention(model, sliding_window="ignore"):
            assert torch.equal(hidden_states(model, tokens), open_)


def test_a_failing_block_still_restores() -> None:
    model = shared_model("llama")
    before = copy.deepcopy(fingerprint(model))
    with pytest.raises(KeyError), patch_attention(model):
        raise KeyError
    assert fingerprint(model) == before


def test_a_copy_of_a_patched_model_is_patched_on_its_own() -> None:
    model = shared_model("gemma3")
    tokens = random_tokens(1, 9)
    with patch_attention(model), torch.no_grad():
        copied = copy.deepcopy(model)
        expected = hidden_states(model, tokens)
    with torch.no_grad():
        causal = hidden_states(model, tokens)
        assert torch.equal(hidden_states(copied, tokens), expected)
        patch_attention(copied).restore()
        assert torch.equal(hidden_states(copied, tokens), causal)


@pytest.mark.parametrize("sliding_window", ["keep", "ignore"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@variants
def test_saved_model_loads_bidirectional(
    variant: str, implementation: str, sliding_window: str, tmp_path: Path
) -> None:
    """Without the patch, transformers gives what the patched model gave, windows included."""
    model = shared_model(variant)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    with patch_attention(model, backend=implementation, sliding_window=sliding_window), torch.no_grad():  # type: ignore[arg-type]
        expected = hidden_states(model, tokens, attention_mask=mask)[mask.bool()]
        model.save_pretrained(tmp_path)
    assert "patched" not in (tmp_path / "config.json").read_text()
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.config.is_causal is False
    with torch.no_grad():
        assert_close(hidden_states(loaded, tokens, attention_mask=mask)[mask.bool()], expected)
        with patch_attention(loaded, backend=implementation, sliding_window=sliding_window):  # type: ignore[arg-type]
            row = hidden_states(loaded, tokens[:1], **packed_inputs([9]))
        assert_close(row[0], expected[:9])
        with patch_attention(loaded, "causal"):
            assert loaded.config.is_causal is True
        assert loaded.config.is_causal is False


def test_a_model_made_from_a_patched_config_is_bidirectional() -> None:
    model = shared_model("llama")
    with patch_attention(model), torch.no_grad():
        other = type(model)._from_config(model.config)
        other.load_state_dict(model.state_dict())
        tokens = random_tokens(1, 6)
        assert_close(hidden_states(other, tokens), hidden_states(model, tokens))
