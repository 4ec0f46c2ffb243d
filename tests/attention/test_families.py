"""Encoders, other architectures, and models that are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from attention_patch import (
    packed_inputs,
    patch_attention,
)
from tests.attention.models import (
    BACKENDS,
    LENGTHS,
    SIZES,
    apart,
    assert_close,
    hidden_states,
    model_of_type,
    movements,
    patched,
    random_tokens,
    shared_model,
)


GEMMA3 = {"use_bidirectional_attention": True, "sliding_window": 6, "head_dim": 8, "query_pre_attn_scalar": 8,
          "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
MODERNBERT = {"cls_token_id": 0, "sep_token_id": 1, "local_attention": 6, "global_attn_every_n_layers": 2}


@pytest.mark.parametrize(
    ("model_type", "overrides"), [("bert", {}), ("modernbert", MODERNBERT), ("gemma3_text", GEMMA3)]
)
@pytest.mark.parametrize("backend", [*BACKENDS, "torch-flash"])
def test_encoders_stay_what_they_are_and_pack(model_type: str, overrides: dict[str, Any], backend: str) -> None:
    model = model_of_type(model_type, **overrides)
    tokens, mask = random_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 7:] = 0
    row = random_tokens(1, sum(LENGTHS))
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(tokens, attention_mask=mask)[0][mask.bool()]
        texts = torch.cat([model(text)[0] for text in row.split(LENGTHS, dim=1)], dim=1)
        with patched(model, "bidirectional", backend):
            assert_close(model(tokens, attention_mask=mask)[0][mask.bool()], expected)
            assert_close(model(row, **packed_inputs(LENGTHS))[0], texts)
        with pytest.raises(ValueError, match="is an encoder"):
            patch_attention(model, "causal")


OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "olmo2": {},
    "cohere2": {},
    "phi": {},
    "starcoder2": {},
    "granite": {},
    "gpt_bigcode": {},
    "electra": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "gpt_oss": {"num_local_experts": 4, "num_key_value_heads": 2, "head_dim": 8},
    "eurobert": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(model_type: str, backend: str) -> None:
    """No class per architecture: what goes through the shared functions is served without being known here."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    model = model_of_type(model_type, max_position_embeddings=64, **OTHERS[model_type])
    row = random_tokens(1, sum(LENGTHS))
    if model_type == "gpt_oss" and backend == "sdpa":
        with pytest.raises(ValueError, match="cannot attend through sdpa"):
            patch_attention(model, backend="sdpa")
        return
    with patched(model, "bidirectional", backend), torch.no_grad():
        assert_close(model(row, **packed_inputs(LENGTHS))[0], apart(model, row, LENGTHS))
        moved = movements(model, row[0, :5], lambda batch: hidden_states(model, batch))
    assert (moved > 1e-4).all()


def test_an_architecture_that_drops_the_lengths_cannot_pack() -> None:
    """StableLM's layers pass no keyword arguments on: bidirectional yes, packed no."""
    model = model_of_type("stablelm", num_key_value_heads=2)
    with patch_attention(model), torch.no_grad():
        moved = movements(model, random_tokens(5), lambda batch: hidden_states(model, batch))
        assert (moved > 1e-4).all()
        with pytest.raises(ValueError, match="without its lengths"):
            hidden_states(model, random_tokens(1, sum(LENGTHS)), **packed_inputs(LENGTHS))


class OwnAttention(nn.Module):
    """As remote code does: the scores, and what is causal about them, are computed on the spot."""

    is_causal = True

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        scores = torch.matmul(states, states.transpose(-1, -2))
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return self.mix(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ states)


class OwnModel(PreTrainedModel):
    config_class = AutoConfig.for_model("llama").__class__

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(8, 4)
        self.attention = OwnAttention()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.attention(self.embed(input_ids))


def llama_with_a_convolution() -> PreTrainedModel:
    model = copy.deepcopy(shared_model("llama"))
    model.model.layers[0].short = nn.Conv1d(4, 4, 3)
    return model


def refused_models() -> dict[str, tuple[Any, str]]:
    hybrid = {"num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    text = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
    both = {"vision_config": vision, "text_config": text, "mm_tokens_per_image": 4}
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
    return {
        "own-attention": (lambda: OwnModel(AutoConfig.for_model("llama", **SIZES)), "computes its attention itself"),
        "bloom": (lambda: model_of_type("bloom", n_layer=2, n_head=4), "computes its attention itself"),
        "deberta-v2": (lambda: model_of_type("deberta-v2"), "computes its attention itself"),
        "convolution": (llama_with_a_convolution, "mixes tokens by other means"),
        "state-space": (lambda: model_of_type("falcon_h1", **hybrid), "mixes tokens by other means"),
        "chunks": (
            lambda: model_of_type("llama4_text", num_key_value_heads=2, head_dim=8),
            "mixes tokens by other means",
        ),
        "cross-attention": (lambda: model_of_type("gpt2", add_cross_attention=True), "mixes tokens by other means"),
        "text-and-image": (lambda: model_of_type("gemma3", **both), "reads more than text"),
        "encoder-decoder": (lambda: model_of_type("bart", **bart), "is an encoder-decoder"),
    }


@pytest.mark.parametrize("name", refused_models())
def test_models_that_cannot_be_patched_are_refused(name: str) -> None:
    build, sentence = refused_models()[name]
    model = build()
    before = copy.deepcopy(dict(vars(model.config)))
    with pytest.raises(ValueError, match=sentence):
        patch_attention(model)
    assert vars(model.config) == before


def test_own_masks_are_refused() -> None:
    """The interface for attention but masks of its own, as older remote code has: it would stay causal."""
    model = copy.deepcopy(shared_model("llama").base_model)

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    class OwnMasks(type(model)):  # type: ignore[misc]
        pass

    OwnMasks.forward = type(forward)(forward.__code__, {})  # type: ignore[method-assign]
    model.__class__ = OwnMasks
    with pytest.raises(ValueError, match="computes its attention masks itself"):
        patch_attention(model)


def test_a_causal_call_of_a_bidirectional_model_is_refused() -> None:
    model = shared_model("llama").base_model
    with patch_attention(model), pytest.raises(ValueError, match="`is_causal=True`"):
        model(random_tokens(1, 4), is_causal=True)


def test_backends_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        patch_attention(model, backend="flash_attention_2")
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with pytest.raises(ValueError, match="cannot attend through sdpa"):
        patch_attention(model, backend="sdpa")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ValueError, match="attends through flex_attention: set `backend`"):
        patch_attention(model)
