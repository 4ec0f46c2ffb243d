"""Texts of an embedder: a text that cannot be read is named by its position, whatever batch it came to."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.encoder import encoder as encoder_module
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
