"""Tokens of words: which are read, and where."""

from __future__ import annotations

import pytest

from llamafactory_embed.data.words.tokenization import WordTokenizer, tells_words_by_spaces
from tests.tiny_models import tiny_tokenizer


def test_words_that_are_cut_off_are_not_among_the_read_ones() -> None:
    words = ["water", "wheel", "stone", "bridge"]
    whole = WordTokenizer(tiny_tokenizer(), 64, "same_token", True)([words])[0]
    for room in range(2, len(whole.token_ids)):
        cut = WordTokenizer(tiny_tokenizer(), room, "same_token", True)([words])[0]
        assert cut.token_ids == whole.token_ids[:room]
        assert cut.words == [w for w, (start, _) in zip(whole.words, whole.spans, strict=True) if start < room]
    with pytest.raises(ValueError, match="`cutoff_len: 1`"):
        WordTokenizer(tiny_tokenizer(), 1, "same_token", True)([words])


def test_next_token_reads_one_token_before() -> None:
    words = ["water", "wheel"]
    same, before = (
        WordTokenizer(tiny_tokenizer(), 64, place, True)([words])[0] for place in ("same_token", "next_token")
    )
    assert before.token_ids == same.token_ids
    assert before.spans == [(start - 1, end - 1) for start, end in same.spans]
    assert before.spans[0][0] == 0


def test_byte_level_tokenizers_tell_words_by_spaces() -> None:
    assert tells_words_by_spaces(tiny_tokenizer())
    spaced = WordTokenizer.create(tiny_tokenizer(), 64, "same_token", None)([["a", "stone"]])[0]
    assert tiny_tokenizer().decode(spaced.token_ids, skip_special_tokens=True) == "a stone"


def test_a_word_that_cannot_be_read_is_named() -> None:
    tokenizer = WordTokenizer.create(tiny_tokenizer(), 64, "same_token", None)
    with pytest.raises(ValueError, match="Word 2 cannot be tokenized, for it holds half a character"):
        tokenizer([["water", "wheel"], ["\ud83d"]])
