"""`simcse_dropout` in every architecture: it moves what is trained, leaves what is served, or is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import pack_texts
from llamafactory_embed.train.embed.contrastive.simcse import set_attention_dropout
from tests.attention.reference import FlashReference, flash_on_cpu
from tests.embedders import make_config, make_embedder
from tests.tiny_models import FAMILIES, tiny_model


TEXTS = [[5, 8, 13, 21, 34], [55, 89, 144]]


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_views_differ_in_training_only(family: str, lora: bool) -> None:
    model = make_embedder(family, lora_dropout=0.0 if lora else None)
    saved = model.decoder.config.to_dict()
    batch = pack_texts(TEXTS)
    undisturbed = model.eval()(batch)
    torch.testing.assert_close(model.train()(batch), undisturbed)  # these models have no dropout of their own
    set_attention_dropout(model.decoder, 0.4)
    assert not torch.allclose(model(batch), model(batch), atol=1e-3)
    torch.testing.assert_close(model.eval()(batch), undisturbed)
    assert model.decoder.config.to_dict() == saved


def test_flash_attention_is_given_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of flash-attn cannot drop anything, but it can say what it was asked for."""
    asked: list[float] = []
    reference = FlashReference.flash_attn_varlen_func

    @functools.wraps(reference)  # transformers asks for its parameters
    def record(self: FlashReference, *args: Any, dropout_p: float = 0.0, **kwargs: Any) -> torch.Tensor:
        asked.append(dropout_p)
        return reference(self, *args, **kwargs)

    monkeypatch.setattr(FlashReference, "flash_attn_varlen_func", record)
    with flash_on_cpu():
        model = EmbeddingModel(tiny_model("llama"), make_config(), backend="flash_attention_2")
        set_attention_dropout(model.decoder, 0.25)
        model.train()(pack_texts(TEXTS))
        model.eval()(pack_texts(TEXTS))
    layers = model.decoder.config.num_hidden_layers
    assert asked == [0.25] * layers + [0.0] * layers


def test_attention_that_keeps_its_dropout_elsewhere_is_refused() -> None:
    class OtherAttention(nn.Module):
        drop_rate = 0.0

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(hidden, self.drop_rate)

    decoder = tiny_model("llama").base_model
    decoder.layers[1].self_attn = OtherAttention()
    with pytest.raises(ValueError, match=r"`simcse_dropout` reaches the attention of 1 of the 2 layers of LlamaModel"):
        set_attention_dropout(decoder, 0.3)
