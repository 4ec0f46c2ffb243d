"""Rows of documents → one step's batch with tokens hidden in it: the same masks on any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..data.document_batches import DocumentRow
from ..model.token_predictor import CorruptedText, pack_corrupted_texts
from .texts import Text


TextsOfRows = Callable[[Sequence[DocumentRow]], list[list[Text]]]


@dataclass(frozen=True)
class CorruptedRow:
    """The texts of a row in which tokens are hidden. (A text may give several, each with other tokens hidden.)"""

    texts: list[CorruptedText]
    loss_count: float
    """What the row adds to the number that a step's sum of losses is divided by."""


class Corruption(Protocol):
    """Hides tokens of a row. Everything it draws depends on the row's place in the run and on nothing else."""

    def __call__(self, row: DocumentRow, texts: Sequence[Text]) -> CorruptedRow: ...


class TokenCollator:
    """Hides tokens and packs texts; runs in the data loader's workers."""

    def __init__(self, texts_of_rows: TextsOfRows, corrupt: Corruption, max_tokens: int) -> None:
        self.texts_of_rows = texts_of_rows
        self.corrupt = corrupt
        self.max_tokens = max_tokens

    def __call__(self, rows: Sequence[DocumentRow]) -> dict[str, Any]:
        corrupted = [self._corrupt(row, texts) for row, texts in zip(rows, self.texts_of_rows(rows), strict=True)]
        texts = [text for row in corrupted for text in row.texts]
        return {
            "input_ids": torch.cat([text.token_ids for text in texts]),  # what the Trainer counts tokens by
            "batches": pack_corrupted_texts(texts, self.max_tokens),
            "loss_count": torch.tensor(sum(row.loss_count for row in corrupted), dtype=torch.float32),
        }

    def _corrupt(self, row: DocumentRow, texts: Sequence[Text]) -> CorruptedRow:
        if row.is_filler:
            tokens = (torch.tensor(text.token_ids) for text in texts)
            return CorruptedRow([CorruptedText.without_labels(each) for each in tokens], loss_count=0.0)
        return self.corrupt(row, texts)
