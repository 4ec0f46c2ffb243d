"""Long documents in parts: nothing is lost, everything fits, and a document is found by its best part."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llamafactory_embed import Encoder
from llamafactory_embed.evaluation.chunks import split_documents, split_range, split_text
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.tiny_models import tiny_tokenizer


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 19, 20, 137])
@pytest.mark.parametrize("size", [1, 2, 10, 30])
def test_ranges_cover_everything_and_overlap(length: int, size: int) -> None:
    ranges = split_range(length, size)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == length
    assert all(end - start <= size for start, end in ranges)
    assert all(start > last and start <= end for (last, end), (start, _) in itertools.pairwise(ranges))
    assert len(ranges) == 1 or all(end - start == size for start, end in ranges)


@pytest.mark.parametrize("template", ["{text}", "passage: {text} [end]"])
def test_parts_are_read_whole_and_hold_the_text(template: str) -> None:
    options = {"document_template": template, "document_max_length": 24, "pooling": "last", "attention": "causal"}
    encoder = Encoder(make_embedder(**options), tiny_tokenizer())
    texts = ["short", " ".join(PROSE), "", PROSE[0] * 3]
    parts = split_documents(encoder, texts)
    assert parts.owners.tolist() == sorted(parts.owners.tolist())
    assert set(parts.owners) == {0, 1, 2, 3}
    long = encoder.tokenizer.tokenizer
    for index, text in enumerate(texts):
        own = [part for part, owner in zip(parts.texts, parts.owners, strict=True) if owner == index]
        place = 0
        for part in own:
            start = text.find(part, max(0, place - len(part)))
            assert 0 <= start <= place, "a gap between two parts"
            place = start + len(part)
        assert place == len(text)
    assert parts.texts[0] == "short"
    longest = max(len(long(part, add_special_tokens=False)["input_ids"]) for part in parts.texts)
    room = 24 - len(encoder.tokenizer.documents([""])[0].token_ids)
    assert longest <= room + 1  # a part may begin inside a word, and be one token longer by itself


def test_a_template_without_room_for_text_is_refused() -> None:
    encoder = Encoder(make_embedder(document_template=f"{PROSE[0]} {{text}}", document_max_length=5), tiny_tokenizer())
    with pytest.raises(ValueError, match="`long_documents: chunk` needs room for text"):
        split_documents(encoder, ["text"])


def test_a_part_is_embedded_as_the_text_alone_would_be() -> None:
    encoder = Encoder(make_embedder(document_max_length=24), tiny_tokenizer())
    text = " ".join(PROSE)
    parts = split_documents(encoder, [text])
    assert len(parts.texts) > 3
    cut = encoder.encode(text)
    np.testing.assert_allclose(encoder.encode(parts.texts[0]), cut, atol=1e-5)  # truncation keeps just the first part


@pytest.mark.parametrize("document_max_length", [56, 64, 96])
@pytest.mark.parametrize("instruction", ["", INSTRUCTION], ids=["plain", "instruction"])
@pytest.mark.parametrize("template", ["e5", "llm2vec", "{instruction} {text} [end]"])
def test_every_word_is_read_in_front_of_an_instruction_too(
    template: str, instruction: str, document_max_length: int
) -> None:
    encoder = Encoder(
        make_embedder(query_template=template, document_max_length=document_max_length), tiny_tokenizer()
    )
    texts = [" ".join(f"elephant{n}," for n in range(first, first + 60)) for first in (0, 100, 200)]
    texts += [" ".join(PROSE[first : first + 7]) for first in range(5)]
    parts = split_documents(encoder, texts, instruction)
    plain = tiny_tokenizer()
    for index, text in enumerate(texts):
        own = [part for part, owner in zip(parts.texts, parts.owners, strict=True) if owner == index]
        assert len(own) > 2
        tokenized = encoder.tokenizer.documents(own, instruction)
        assert max(len(each.token_ids) for each in tokenized) <= document_max_length
        place = 0
        for part, tokens in zip(own, tokenized, strict=True):
            read = read_of(plain.decode(tokens.token_ids, skip_special_tokens=True), part)
            start = text.find(part, max(0, place - len(part)))
            assert 0 <= start <= place, "a gap between what is read of two parts"
            place = max(place, start + len(read))
        assert place == len(text), "the end of the document is not read"


@pytest.mark.parametrize("size", [9, 10, 20, 31])
def test_a_tokenizer_that_puts_a_blank_in_front_loses_no_end(size: int) -> None:
    """As SentencePiece does: a part that begins inside a word has one token more when it stands alone."""
    letters = {letter: number for number, letter in enumerate(sorted({*"".join(PROSE), "▁"}))}
    backend = Tokenizer(models.BPE(letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for text in PROSE:
        start = place = 0
        for part in split_text(tokenizer, text, size):
            offsets = tokenizer(part, return_offsets_mapping=True)["offset_mapping"]
            start = text.find(part, start)
            assert 0 <= start <= place, "a gap between what is read of two parts"
            place = max(place, start + offsets[:size][-1][1])
        assert place == len(text), "the end of the document is not read"


def read_of(tokens: str, part: str) -> str:
    """The longest beginning of a part that stands in the tokens' text; what lies in front is the instruction."""
    return next(part[:length] for length in range(len(part), -1, -1) if part[:length] in tokens)


def test_an_instruction_that_leaves_no_room_is_refused() -> None:
    encoder = Encoder(make_embedder(document_max_length=12), tiny_tokenizer())
    with pytest.raises(ValueError, match="template and instruction take all of the 12 tokens of a document"):
        split_documents(encoder, ["text"], INSTRUCTION * 3)
