"""Batches of `stage: tdro`: those of the contrastive stage, with the reference's loss of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....data.retrieval.rows import Example
from ....hparams.contrastive import ComparisonOptions
from ..contrastive.batch import ContrastiveBatch, ContrastiveCollator, text_id
from ..losses import own_passages_loss


@dataclass(frozen=True)
class TdroBatch(ContrastiveBatch):
    """B rows of mixed tasks with K negatives each."""

    example_ids: Tensor  # [B], equal for examples of the same texts and instructions
    reference_losses: Tensor | None = None  # [B], filled in by the trainer


class TdroCollator(ContrastiveCollator):
    """Tokenizes, packs and numbers; runs in the data loader's workers."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        inputs = super().__call__(examples)
        batch: ContrastiveBatch = inputs["batch"]
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        example_ids = torch.tensor([example_id(example) for example in examples])
        return inputs | {"batch": TdroBatch(**fields, example_ids=example_ids)}


def example_id(example: Example) -> int:
    """A number for what a query is compared with, as drawn in one epoch."""
    texts = (example.query_instruction, example.passage_instruction, *example.texts)
    return text_id("\x1f".join(texts))


def query_losses(embeddings: Tensor, batch: ContrastiveBatch, options: ComparisonOptions) -> Tensor:
    """Each query's cross entropy over its own positive and hard negatives: embeddings [2B + B*K, d] → [B]. Losses of
    different tasks can be compared because no other row's passages take part."""
    queries, positives, negatives = batch.split(embeddings.float())
    assert negatives is not None
    passages = torch.cat([positives.unsqueeze(1), negatives], dim=1)  # [B, 1 + K, d]
    return own_passages_loss(
        queries, passages, temperature=options.loss_temperature, similarity=options.similarity, reduction="none"
    )
