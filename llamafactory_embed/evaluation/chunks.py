"""Long documents in parts that the model reads whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..encoder.encoder import Encoder


OVERLAP = 0.1  # of a part is also in the next one, so that no sentence is cut in both


@dataclass(frozen=True)
class Parts:
    """Parts of documents, in order."""

    texts: list[str]
    owners: np.ndarray
    """The position of each part's document."""


def whole_documents(texts: Sequence[str]) -> Parts:
    """Every document is its only part."""
    return Parts(list(texts), np.arange(len(texts)))


def split_documents(encoder: Encoder, texts: Sequence[str], instruction: str = "") -> Parts:
    """Cut documents that are longer than in training, between tokens, into overlapping parts. With template and
    instruction a part has the trained length, and the model reads all of it."""
    overhead = len(encoder.tokenizer.documents([""], instruction)[0].token_ids)
    size = encoder.config.document_max_length - overhead
    if size < 1:
        takes = "template and instruction take" if instruction else "the template takes"
        raise ValueError(
            f"`long_documents: chunk` needs room for text, but {takes} all of the "
            f"{encoder.config.document_max_length} tokens of a document."
        )
    parts: list[str] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        document_parts = split_text(encoder.tokenizer.tokenizer, text, size)
        parts += document_parts
        owners += [index] * len(document_parts)
    return Parts(parts, np.array(owners, dtype=np.int64))


def cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> list[str]:
    """The first `size` tokens of each text, as text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        text if len(offsets) <= size else text[: offsets[size - 1][1]]
        for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
    ]


def split_text(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """Parts of `size` tokens. A part that begins inside a word may have more tokens when it stands alone, and its end
    would not be read: where no other part holds that end, the part is halved."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    ranges = split_range(len(offsets), size)
    if len(ranges) == 1:
        return [text]

    def characters(start: int, end: int) -> str:
        return text[offsets[start][0] : offsets[end - 1][1]]

    whole = [characters(*each) for each in ranges]
    alone = tokenizer(whole, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    next_starts = [*(start for start, _ in ranges[1:]), ranges[-1][1]]
    parts: list[str] = []
    for part, tokens, (start, end), next_start in zip(whole, alone, ranges, next_starts, strict=True):
        if len(tokens) - size <= end - next_start or end - start < 2:
            parts.append(part)
        else:
            middle = (start + end) // 2
            parts += [characters(start, middle), characters(middle, end)]
    return parts


def split_range(length: int, size: int) -> list[tuple[int, int]]:
    """Ranges of at most `size` that cover 0 … length, each beginning before the end of the last."""
    if length <= size:
        return [(0, length)]
    step = max(1, size - int(size * OVERLAP))
    starts = list(range(0, length - size, step))
    return [(start, start + size) for start in starts] + [(length - size, length)]
