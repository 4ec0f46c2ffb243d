"""Texts of diffusion training: which part of a conversation is cut, what is padded, and the documents of a row."""

from __future__ import annotations

import pytest

from llamafactory_embed.data.document_batches import DocumentRow
from llamafactory_embed.diffusion.texts import (
    DiffuSeqTokens,
    Text,
    chat_text,
    diffuseq_text,
    pad_text,
    split_labels,
    texts_of_documents,
)


BOS, EOS, END_OF_LINE = 1, 2, 3
PROMPT = -100


def conversation(*turns: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """Tokens and labels as the host gives them: each turn a prompt and an answer."""
    tokens, labels = [BOS], [PROMPT]
    for prompt, answer in turns:
        tokens += prompt + answer
        labels += [PROMPT] * len(prompt) + answer
    return tokens, labels


def cut(tokens: list[int], labels: list[int], cutoff_len: int) -> Text:
    return chat_text(tokens, labels, cutoff_len, bos=BOS, ends={EOS})


SHORT = conversation(([10, 11, 12, 13], [20, 21, EOS]))
TWO_TURNS = conversation(([10, 11, 12], [20, 21, EOS]), ([13, 14], [22, 23, EOS]))
LONG_ANSWER = conversation(([10, 11], [20, 21, 22, 23, 24, 25, EOS, END_OF_LINE]))


def test_what_fits_is_left_alone() -> None:
    text = cut(*TWO_TURNS, 20)
    assert text.token_ids == TWO_TURNS[0]
    assert text.is_prompt == [label == PROMPT for label in TWO_TURNS[1]]
    assert text.padding == 0


def test_a_prompt_is_cut_at_its_beginning() -> None:
    text = cut(*SHORT, 6)
    assert text.token_ids == [BOS, 12, 13, 20, 21, EOS]
    assert text.is_prompt == [True, True, True, False, False, False]


def test_old_turns_go_first() -> None:
    text = cut(*TWO_TURNS, 8)
    assert text.token_ids == [BOS, 21, EOS, 13, 14, 22, 23, EOS]
    assert text.is_prompt == [True, False, False, True, True, False, False, False]


def test_a_long_answer_keeps_its_end() -> None:
    text = cut(*LONG_ANSWER, 6)
    assert text.token_ids == [BOS, 20, 21, 22, EOS, END_OF_LINE]
    assert text.is_prompt == [True] + [False] * 5


@pytest.mark.parametrize("cutoff_len", range(1, 20))
@pytest.mark.parametrize("example", [SHORT, TWO_TURNS, LONG_ANSWER])
def test_no_cut_loses_the_answer_or_its_end(example: tuple[list[int], list[int]], cutoff_len: int) -> None:
    text = cut(*example, cutoff_len)
    assert len(text) == min(cutoff_len, len(example[0])) == len(text.is_prompt or [])
    answer = split_labels(*example)[1]
    kept = [token for token, given in zip(text.token_ids, text.is_prompt or [], strict=True) if not given]
    assert kept
    if cutoff_len > 2:
        assert EOS in kept
    if cutoff_len > len(answer):
        assert kept[-len(answer) :] == answer


def test_an_answer_without_an_end_is_cut_on_the_right() -> None:
    text = cut([BOS, 10, 20, 21, 22, 23], [PROMPT, PROMPT, 20, 21, 22, 23], 4)
    assert text.token_ids == [BOS, 20, 21, 22]


def test_the_last_answer_is_what_is_labelled_last() -> None:
    assert split_labels(*TWO_TURNS) == (TWO_TURNS[0][:-3], [22, 23, EOS])
    assert split_labels([1, 2, 3], [PROMPT] * 3) == ([], [])


def test_padding_is_learned() -> None:
    text = pad_text(Text([5, 6, EOS], [True, False, False]), 5, EOS)
    assert text.token_ids == [5, 6, EOS, EOS, EOS]
    assert text.is_prompt == [True, False, False, False, False]
    assert text.padding == 2
    assert pad_text(text, 3, EOS) == text


def test_a_cutoff_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="`cutoff_len` must be at least 3"):
        diffuseq_text([10], [20], 2, DiffuSeqTokens(bos=1, sep=3, eos=2, pad=0))


class CountedLength(int):
    """A length that counts how often it is added to something."""

    additions = 0

    def __add__(self, other: int) -> int:
        CountedLength.additions += 1
        return int(self) + int(other)

    __radd__ = __add__


def test_documents_of_a_row_are_found_in_one_pass() -> None:
    lengths = [1 + number % 3 for number in range(300)]
    tokens = list(range(sum(lengths)))
    (texts,) = texts_of_documents([DocumentRow(tokens, [CountedLength(each) for each in lengths], epoch=0, place=0)])
    assert [len(text) for text in texts] == lengths
    assert [token for text in texts for token in text.token_ids] == tokens
    assert CountedLength.additions < 3 * len(lengths)
