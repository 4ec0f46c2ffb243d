"""Texts → token ids, with EOS or mask tokens where pooling reads them, and the place from which it may start."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from .problems import broken_character
from .prompts import PromptedText


MOST_CHARACTERS_SHOWN = 80


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text, ready for the model; pooling counts the tokens from `pooled_from` on."""

    token_ids: list[int]
    pooled_from: int = 0  # equal to the number of tokens when truncation left nothing of the text


@dataclass(frozen=True)
class SpecialTokens:
    """What stands before and after every text."""

    leading: tuple[int, ...]
    trailing: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.leading) + len(self.trailing)


def find_special_tokens(tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> SpecialTokens:
    """The special tokens that this tokenizer puts around a text, and EOS after it if `append_eos`.

    A tokenizer whose post-processor already ends a text, with EOS or another token (BERT's SEP, the end of
    text of Qwen3-Embedding), gets nothing more: that token is what its model knows as the end. The switch
    `add_eos_token` is not used: transformers 5 ignores it silently for most tokenizers.
    """
    text = "a"
    inner = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    outer = list(tokenizer(text)["input_ids"])
    starts = [start for start in range(len(outer) - len(inner) + 1) if outer[start : start + len(inner)] == inner]
    if not inner or not starts:
        raise ValueError(
            f"{type(tokenizer).__name__} tokenizes a text differently with and without special tokens; "
            "embedding needs a tokenizer that only adds them before and after."
        )
    leading, trailing = tuple(outer[: starts[0]]), tuple(outer[starts[0] + len(inner) :])
    if append_eos and not trailing:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "`pooling: eos` and `pooling: last` need a tokenizer with an `eos_token`; this one has none."
            )
        trailing = (tokenizer.eos_token_id,)
    return SpecialTokens(leading, trailing)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[PromptedText],
    *,
    max_length: int,
    append_eos: bool = False,
    append_masks: Sequence[int] = (),
    skip_instruction: bool = False,
    numbers: Sequence[int] | None = None,
    special: SpecialTokens | None = None,
) -> list[TokenizedText]:
    """Tokenize texts in one batch, at most `max_length` tokens each, special tokens included.

    The text is what truncation shortens: its prefix (the instruction), its suffix and EOS survive. With
    `skip_instruction`, pooling starts at the first token that holds a character of the text; special tokens in front
    never count then. `append_masks` are tokens that stand behind everything; pooling counts these alone.

    `numbers` are the texts' positions in what the caller was given, for the sentence about one that cannot be read.
    `special` is what `find_special_tokens` has found before: it costs as much as a text.
    """
    if special is None:
        special = find_special_tokens(tokenizer, append_eos)
    special = replace(special, trailing=(*special.trailing, *append_masks))
    room = max_length - len(special)
    if room < 1:
        raise ValueError(
            f"`max_length` is {max_length}, but the tokenizer's special tokens alone take {len(special)}: "
            f"it must be at least {len(special) + 1}."
        )
    if not texts:
        return []

    try:
        encoded = _encode(tokenizer, [text.string for text in texts])
    except Exception:  # whatever the tokenizer makes of it: is one of the texts the reason?
        numbers = range(len(texts)) if numbers is None else numbers
        refuse_unreadable([text.text for text in texts], "Text", numbers)
        refuse_unreadable([text.prefix + text.suffix for text in texts], "The instruction of text", numbers)
        raise
    if skip_instruction or any(len(body) > room for body in encoded["input_ids"]):
        prefix_lengths, suffix_lengths = _measure_prompts(tokenizer, texts, encoded)
    else:  # nothing is cut, and everything counts
        prefix_lengths = suffix_lengths = [0] * len(texts)
    bodies = [_cut(body, room, n) for body, n in zip(encoded["input_ids"], suffix_lengths, strict=True)]
    rows = [[*special.leading, *body, *special.trailing] or [filler_token(tokenizer)] for body in bodies]
    if append_masks:
        return [TokenizedText(row, len(row) - len(append_masks)) for row in rows]
    if not skip_instruction:
        return [TokenizedText(row) for row in rows]
    return [
        TokenizedText(row, len(special.leading) + before if before + after < len(body) else len(row))
        for row, body, before, after in zip(rows, bodies, prefix_lengths, suffix_lengths, strict=True)
    ]


def refuse_unreadable(texts: Sequence[Any], what: str, numbers: Sequence[int]) -> None:
    """Name the first text that no tokenizer can read."""
    for number, text in zip(numbers, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"{what} {number} must be text, not {text!r}.")
        if broken := broken_character(text):
            raise ValueError(f"{what} {number} cannot be tokenized, for it holds {broken}: {shorten(text)!r}.")


def shorten(text: str) -> str:
    """Enough of a text to recognise it."""
    return text if len(text) <= MOST_CHARACTERS_SHOWN else f"{text[:MOST_CHARACTERS_SHOWN]}…"


def _encode(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> BatchEncoding:
    """Token ids without special tokens; `verbose=False` because texts are cut afterwards."""
    return tokenizer(strings, add_special_tokens=False, return_attention_mask=False, verbose=False)


def _measure_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[PromptedText], encoded: BatchEncoding
) -> tuple[list[int], list[int]]:
    """The number of tokens before each text and after it; a token that holds some of the text is the text's."""
    if not any(text.prefix or text.suffix for text in texts):
        return [0] * len(texts), [0] * len(texts)
    if encoded.encodings is None:
        return _measure_without_offsets(tokenizer, texts, encoded["input_ids"])

    before, after = [], []
    for text, encoding in zip(texts, encoded.encodings, strict=True):
        offsets = encoding.offsets  # (first, last + 1) character of each token, both never falling
        text_start, text_end = len(text.prefix), len(text.prefix) + len(text.text)
        before.append(bisect.bisect_right(offsets, text_start, key=lambda offset: offset[1]) if text.prefix else 0)
        after.append(len(offsets) - bisect.bisect_left(offsets, text_end, key=lambda offset: offset[0]))
    return before, [count if text.suffix else 0 for text, count in zip(texts, after, strict=True)]


def _measure_without_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[PromptedText], bodies: list[list[int]]
) -> tuple[list[int], list[int]]:
    """The same for tokenizers that know no characters: tokens that the whole string shares with its prefix alone (at
    the front) or with its suffix alone (at the back) hold nothing of the text."""
    parts = sorted({part for text in texts for part in (text.prefix, text.suffix) if part})
    ids_of_part = dict(zip(parts, _encode(tokenizer, parts)["input_ids"], strict=True)) | {"": []}
    before = [_shared(body, ids_of_part[text.prefix]) for text, body in zip(texts, bodies, strict=True)]
    after = [
        min(_shared(body[::-1], ids_of_part[text.suffix][::-1]), len(body) - count)
        for text, body, count in zip(texts, bodies, before, strict=True)
    ]
    return before, after


def _shared(first: list[int], second: list[int]) -> int:
    """How many tokens two lists have in common from the start."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _cut(body: list[int], room: int, suffix_length: int) -> list[int]:
    """Shorten a body that has too many tokens in front of its suffix."""
    if len(body) <= room or suffix_length == 0:
        return body[:room]
    return (body[: max(0, room - suffix_length)] + body[-suffix_length:])[:room]


def filler_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Stands for a text without tokens where the tokenizer adds none: the model needs a token to read."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    raise ValueError("An empty text cannot be embedded with a tokenizer that has no `eos_token`; set one.")
