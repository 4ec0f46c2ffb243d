"""Long documents in parts that the model reads whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


def split_documents(encoder: Encoder, texts: Sequence[str]) -> Parts:
    """Cut documents that are longer than was trained, between tokens, into overlapping parts of the trained length."""
    overhead = len(encoder.tokenizer.documents([""])[0].token_ids)
    size = encoder.config.document_max_length - overhead
    if size < 1:
        raise ValueError(
            f"`long_documents: chunk` needs room for text: of the {encoder.config.document_max_length} tokens of a "
            f"document, the template takes {overhead}."
        )
    tokenizer = encoder.tokenizer.tokenizer
    parts: list[str] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for start, end in split_range(len(offsets), size):
            parts.append(text[offsets[start][0] : offsets[end - 1][1]] if end > start else text)
            owners.append(index)
    return Parts(parts, np.array(owners, dtype=np.int64))


def split_range(length: int, size: int) -> list[tuple[int, int]]:
    """Ranges of at most `size` that cover 0 … length, each beginning before the end of the last."""
    if length <= size:
        return [(0, length)]
    step = max(1, size - int(size * OVERLAP))
    starts = list(range(0, length - size, step))
    return [(start, start + size) for start in starts] + [(length - size, length)]
