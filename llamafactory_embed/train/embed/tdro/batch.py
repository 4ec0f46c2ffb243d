"""Batches of `stage: tdro`: those of the contrastive stage, with the reference's loss of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....data.retrieval.rows import Example
from ....hparams.tdro import TdroOptions
from ....model.packed import PackedBatch
from ..contrastive.batch import ContrastiveBatch, ContrastiveCollator, text_id
from ..losses.info_nce import find_positives
from ..losses.own_passages import own_passages


@dataclass(frozen=True)
class TdroBatch(ContrastiveBatch):
    """B rows of mixed tasks with K negatives each."""

    example_ids: Tensor  # [B], equal for examples of the same texts and instructions
    reference_losses: Tensor | None = None  # [B], filled in by the trainer


ReferenceFunction = Callable[[TdroBatch, Sequence[PackedBatch]], Tensor]
"""A batch and the forwards of its texts → the reference's losses of its rows, [B]."""


class TdroCollator(ContrastiveCollator):
    """Tokenizes, packs and numbers; runs in the data loader's workers."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        inputs = super().__call__(examples)
        batch: ContrastiveBatch = inputs["batch"]
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        example_ids = torch.tensor([example_id(example) for example in examples])
        return inputs | {"batch": TdroBatch(**fields, example_ids=example_ids)}


def example_id(example: Example) -> int:
    """A number for a query with what it is compared with, as drawn in one epoch."""
    texts = (example.query_instruction, example.passage_instruction, *example.texts)
    return text_id("\x1f".join(texts))


def query_losses(embeddings: Tensor, batch: ContrastiveBatch, options: TdroOptions) -> Tensor:
    """Each query's cross entropy over its own positive and hard negatives: embeddings [2B + B*K, d] → [B]. Losses of
    different tasks can be compared because no other row's passages take part, unless `tdro_in_batch_negatives` lets
    those of all rows of all ranks in."""
    rows = batch.with_embeddings(embeddings.float())
    if options.tdro_in_batch_negatives:
        return find_positives(rows, rows.of_all_ranks(), options)
    return own_passages(rows, options)
