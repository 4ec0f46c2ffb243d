"""Texts → token ids, with EOS where pooling needs it and the place from which pooling may start."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .prompts import PromptedText


TextBoundary = Literal["aligned", "counted"]


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text, ready for the model; pooling counts the tokens from `pooled_from` on."""

    token_ids: list[int]
    pooled_from: int = 0  # equal to the number of tokens when truncation left nothing of the text


@dataclass(frozen=True)
class SpecialTokens:
    """What stands before and behind every text."""

    leading: tuple[int, ...]
    trailing: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.leading) + len(self.trailing)


def find_special_tokens(tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> SpecialTokens:
    """The special tokens that this tokenizer puts around a text, and EOS behind it if that is asked for.

    A tokenizer whose post-processor already ends a text, with EOS or with a token of its own (BERT's SEP, the end of
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
            "embedding needs a tokenizer that only adds them in front and behind."
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
    skip_instruction: bool = False,
    text_boundary: TextBoundary = "aligned",
) -> list[TokenizedText]:
    """Tokenize texts in one batch, at most `max_length` tokens each, special tokens included.

    The text is what truncation shortens: its prefix (the instruction), its suffix and EOS survive. With
    `skip_instruction`, pooling starts at the first token that holds a character of the text; special tokens in front
    never count then.

    `text_boundary="counted"` does what LLM2Vec does, to reproduce numbers of models that were published with it: the
    whole string is cut on the right, and pooling takes as many tokens from the end as the text has when it stands
    alone. These are not the text's tokens if it tokenizes differently behind an instruction, or was cut.
    """
    special = find_special_tokens(tokenizer, append_eos)
    room = max_length - len(special)
    if room < 1:
        raise ValueError(
            f"`max_length` is {max_length}, but the tokenizer's special tokens alone take {len(special)}: "
            f"it must be at least {len(special) + 1}."
        )
    if not texts:
        return []

    encoded = _encode(tokenizer, [text.string for text in texts])
    if text_boundary == "counted":
        bodies = [body[:room] for body in encoded["input_ids"]]
    else:
        prefix_lengths, suffix_lengths = _measure_prompts(tokenizer, texts, encoded)
        bodies = [_cut(body, room, n) for body, n in zip(encoded["input_ids"], suffix_lengths, strict=True)]
    rows = [[*special.leading, *body, *special.trailing] or [_filler_token(tokenizer)] for body in bodies]
    if not skip_instruction:
        return [TokenizedText(row) for row in rows]

    if text_boundary == "counted":
        counts = _count_tokens(tokenizer, [text.text for text in texts], max_length)
        pooled = [count + len(special.trailing) if count else 0 for count in counts]
        return [TokenizedText(row, max(0, len(row) - n)) for row, n in zip(rows, pooled, strict=True)]
    return [
        TokenizedText(row, len(special.leading) + before if before + behind < len(body) else len(row))
        for row, body, before, behind in zip(rows, bodies, prefix_lengths, suffix_lengths, strict=True)
    ]


def pooled_tokens(texts: Sequence[TokenizedText]) -> Tensor | None:
    """Which tokens of the packed texts count for pooling, [T]; None if all do."""
    if not any(text.pooled_from for text in texts):
        return None
    lengths = torch.tensor([len(text.token_ids) for text in texts])  # [B]
    first = torch.tensor([text.pooled_from for text in texts])  # [B]
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)  # [T], from 0 in each text
    return positions >= torch.repeat_interleave(first, lengths)


def shorten_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, doc_max_length: int, max_length: int
) -> list[str]:
    """Shorten texts to `doc_max_length` tokens by whole words, as LLM2Vec does before it adds an instruction.

    While a text has too many tokens it keeps its first words in the proportion of what fits; tokens are counted up to
    `max_length` only. A text that fits keeps its white space, and a single word that does not fit becomes empty, so
    use this to reproduce published numbers; `tokenize_texts` alone cuts at the token.
    """
    shortened = list(texts)
    open_indices = list(range(len(shortened)))
    while open_indices:
        counts = _count_tokens(tokenizer, [shortened[index] for index in open_indices], max_length)
        too_long = [(index, n) for index, n in zip(open_indices, counts, strict=True) if n > doc_max_length]
        for index, count in too_long:
            words = shortened[index].split()
            shortened[index] = " ".join(words[: int(len(words) * (doc_max_length / count))])
        open_indices = [index for index, _ in too_long]
    return shortened


def _encode(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> BatchEncoding:
    """Token ids without special tokens; `verbose=False` because texts are cut afterwards."""
    return tokenizer(strings, add_special_tokens=False, return_attention_mask=False, verbose=False)


def _count_tokens(tokenizer: PreTrainedTokenizerBase, strings: list[str], limit: int) -> list[int]:
    return [min(len(ids), limit) for ids in _encode(tokenizer, strings)["input_ids"]]


def _measure_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[PromptedText], encoded: BatchEncoding
) -> tuple[list[int], list[int]]:
    """The number of tokens before each text and behind it; a token that holds some of the text is the text's."""
    if not any(text.prefix or text.suffix for text in texts):
        return [0] * len(texts), [0] * len(texts)
    if encoded.encodings is None:
        return _measure_without_offsets(tokenizer, texts, encoded["input_ids"])

    before, behind = [], []
    for text, encoding in zip(texts, encoded.encodings, strict=True):
        offsets = encoding.offsets  # (first, last + 1) character of each token, both never falling
        text_start, text_end = len(text.prefix), len(text.prefix) + len(text.text)
        before.append(bisect.bisect_right(offsets, text_start, key=lambda offset: offset[1]) if text.prefix else 0)
        behind.append(len(offsets) - bisect.bisect_left(offsets, text_end, key=lambda offset: offset[0]))
    return before, [count if text.suffix else 0 for text, count in zip(texts, behind, strict=True)]


def _measure_without_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[PromptedText], bodies: list[list[int]]
) -> tuple[list[int], list[int]]:
    """The same for tokenizers that know no characters: tokens that the whole string shares with its prefix alone (at
    the front) or with its suffix alone (at the back) hold nothing of the text."""
    parts = sorted({part for text in texts for part in (text.prefix, text.suffix) if part})
    ids_of_part = dict(zip(parts, _encode(tokenizer, parts)["input_ids"], strict=True)) | {"": []}
    before = [_shared(body, ids_of_part[text.prefix]) for text, body in zip(texts, bodies, strict=True)]
    behind = [
        min(_shared(body[::-1], ids_of_part[text.suffix][::-1]), len(body) - count)
        for text, body, count in zip(texts, bodies, before, strict=True)
    ]
    return before, behind


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


def _filler_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands for an empty text where the tokenizer adds nothing: the model needs a token to read."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    raise ValueError("An empty text cannot be embedded with a tokenizer that has no `eos_token`; set one.")
