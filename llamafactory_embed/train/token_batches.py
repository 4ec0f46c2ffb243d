"""Rows of documents → one step's batch with tokens hidden in it: the same masks on any number of ranks and workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.document_batches import DocumentRow
from ..model.token_predictor import NO_LABEL, pack_predictions


@dataclass(frozen=True)
class Corrupted:
    """A row in which tokens are hidden."""

    inputs: Tensor  # [n] what the model reads
    labels: Tensor  # [n] what stood there, `NO_LABEL` where nothing is to be predicted
    weights: Tensor | None = None  # [n] what the loss of a label counts; None: 1
    divisor: float | None = None
    """What the row adds to the number by which a step's sum of losses is divided; None: its labels."""


class Corruption(Protocol):
    """Hides tokens of a row. Everything it draws comes from the generator, which belongs to the row."""

    def __call__(self, tokens: Tensor, lengths: Sequence[int], generator: torch.Generator) -> Corrupted: ...


class TokenCollator:
    """Hides and packs; runs in the data loader's workers."""

    def __init__(self, corrupt: Corruption, seed: int, max_tokens: int) -> None:
        self.corrupt = corrupt
        self.seed = seed
        self.max_tokens = max_tokens

    def __call__(self, rows: Sequence[DocumentRow]) -> dict[str, Any]:
        corrupted = [self._corrupt(row) for row in rows]
        has_weights = any(row.weights is not None for row in corrupted)
        weights = [torch.ones(len(each.labels)) if each.weights is None else each.weights for each in corrupted]
        lengths = [row.lengths for row in rows]
        batches = pack_predictions(
            _split([each.inputs for each in corrupted], lengths),
            _split([each.labels for each in corrupted], lengths),
            _split(weights, lengths) if has_weights else None,
            self.max_tokens,
        )
        divisors = [float((row.labels != NO_LABEL).sum()) if row.divisor is None else row.divisor for row in corrupted]
        return {
            "input_ids": torch.cat([each.inputs for each in corrupted]),  # what the Trainer counts tokens by
            "batches": batches,
            "divisor": torch.tensor(sum(divisors), dtype=torch.float32),
        }

    def _corrupt(self, row: DocumentRow) -> Corrupted:
        tokens = torch.tensor(row.token_ids, dtype=torch.long)
        if row.is_filler:
            return Corrupted(tokens, torch.full_like(tokens, NO_LABEL), divisor=0.0)
        return self.corrupt(tokens, row.lengths, row_generator(self.seed, row.epoch, row.place))


def row_generator(seed: int, epoch: int, place: int) -> torch.Generator:
    """The row's own source of chance, which no worker, rank or batch size has a part in."""
    digest = hashlib.blake2b(f"{seed} {epoch} {place}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _split(rows: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> list[Tensor]:
    """Rows → their texts."""
    return [text for row, sizes in zip(rows, lengths, strict=True) for text in row.split(list(sizes))]
