"""Texts with a gap whose content is known: the tokens of the whole text, and which of them are missing.

The three parts are tokenized one by one, because a token that reaches across the border of a gap would tell what is
missing, or be missing itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


GAP_MARK = "<gap>"  # in a text whose row has an answer: where that is missing

# Tokenizers that put a space before a text (SentencePiece) put it before these, which are taken away again.
STARTS = ("", "\n", "0")


def tokenize_with_gap(
    tokenizer: PreTrainedTokenizerBase, text: str, answer: str, leading: Sequence[int]
) -> tuple[list[int], list[bool]]:
    """The tokens of a text with the answer in the place of `<gap>`, after the `leading` ones, and whether each is part
    of the answer."""
    if text.count(GAP_MARK) != 1 or not answer:
        raise ValueError(
            f"`eval_dataset`: a text must have one {GAP_MARK}, and its row the answer that is missing there; the text "
            f"{text!r} has {text.count(GAP_MARK)}, and the answer is {answer!r}."
        )
    before, after = text.split(GAP_MARK)
    given = [*leading, *tokenizer(before, add_special_tokens=False)["input_ids"]]
    missing = continue_tokens(tokenizer, given, answer)
    rest = continue_tokens(tokenizer, [*given, *missing], after)
    holes = [False] * len(given) + [True] * len(missing) + [False] * len(rest)
    return [*given, *missing, *rest], holes


def continue_tokens(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], text: str) -> list[int]:
    """Tokens of a text that goes on after others, without a space that the text does not have."""
    shown = tokenizer.decode(list(before))
    for start in STARTS:
        head = tokenizer(start, add_special_tokens=False)["input_ids"]
        tokens = tokenizer(start + text, add_special_tokens=False)["input_ids"]
        tail = list(tokens[len(head) :])
        if tokens[: len(head)] == head and tokenizer.decode([*before, *tail]) == shown + text:
            return tail
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
