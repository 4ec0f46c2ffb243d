"""Texts of an embedder: a text that cannot be read is named by its position, whatever batch it came to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from llamafactory_embed import Encoder
from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.encoder import encoder as encoder_module
from llamafactory_embed.model.packed import forward_packed, pack_texts
from tests.embedders import make_config, make_embedder
from tests.tiny_models import tiny_tokenizer


HALF = "an \ud83d emoji"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (
            HALF,
            r"Text 5 cannot be tokenized, for it holds half a character \(U\+D83D at position 3\), .*: 'an \\ud83d",
        ),
        (None, "Text 5 must be text, not None"),
        (3.5, r"Text 5 must be text, not 3\.5"),
    ],
)
def test_encode_names_the_text_that_cannot_be_read(bad: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW", 4)
    encoder = Encoder(make_embedder(), tiny_tokenizer())
    texts = ["water"] * 7
    texts[5] = bad
    for arguments in ({}, {"prompt": "find"}, {"prompt": ["find", ""] * 3 + ["find"], "role": "document"}):
        with pytest.raises(ValueError, match=problem):
            encoder.encode(texts, **arguments)


def test_an_instruction_that_cannot_be_read_is_named() -> None:
    tokenizer = EmbeddingTokenizer(tiny_tokenizer(), make_config())
    with pytest.raises(ValueError, match="The instruction of text 1 cannot be tokenized"):
        tokenizer.queries(["a", "b"], ["find", HALF])


def test_long_texts_are_shown_by_their_beginning() -> None:
    tokenizer = EmbeddingTokenizer(tiny_tokenizer(), make_config())
    with pytest.raises(ValueError, match="Text 0") as error:
        tokenizer.documents(["water " * 1000 + HALF])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("length", [4, 9, 48])
def test_mask_tokens_stand_behind_a_text_that_is_cut_before_them(length: int) -> None:
    own = tiny_tokenizer()
    config = dataclasses.replace(
        make_config(pooling="mask", mask_tokens=2, document_max_length=length), mask_token="</s>"
    )
    text = "the water of the river is deep"
    (found,) = EmbeddingTokenizer(own, config).documents([text])
    body = own(text, add_special_tokens=False)["input_ids"]
    assert 6 < len(body) < 40
    assert found.token_ids == [own.bos_token_id, *body[: length - 3], *[own.eos_token_id] * 2]
    assert found.pooled_from == len(found.token_ids) - 2


def test_a_mask_token_that_nobody_has_is_asked_for() -> None:
    with pytest.raises(ValueError, match="its tokenizer has no mask token: name one that it has in `mask_token`"):
        EmbeddingTokenizer(tiny_tokenizer(), make_config(pooling="mask"))
    with pytest.raises(ValueError, match="its tokenizer has no token '<gap>'"):
        EmbeddingTokenizer(tiny_tokenizer(), dataclasses.replace(make_config(pooling="mask"), mask_token="<gap>"))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_embedding_is_the_mean_of_the_states_of_mask_tokens(attention: str) -> None:
    """Of texts that are packed, and as each of them alone has it."""
    model = make_embedder(pooling="mask", mask_tokens=3, attention=attention, normalize_embeddings=False)
    model.embedding_config = dataclasses.replace(model.embedding_config, mask_token="</s>")
    own = tiny_tokenizer()
    texts = ["water", "the river is deep", "an island"]
    found = Encoder(model, own).encode(texts)
    for text, embedding in zip(texts, found, strict=True):
        (batch,) = pack_texts([[*own(text)["input_ids"], *[own.eos_token_id] * 3]], 100)
        with torch.no_grad():
            states = forward_packed(model.decoder, batch)[-1]
        np.testing.assert_allclose(embedding, states[-3:].mean(dim=0).numpy(), atol=1e-5)
