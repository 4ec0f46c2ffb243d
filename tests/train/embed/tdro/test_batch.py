"""The losses that proxy and reference are compared by."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.contrastive.batch import ContrastiveBatch, ContrastiveCollator
from llamafactory_embed.train.embed.tdro.batch import query_losses
from tests.embedders import make_embedder, make_examples, make_tokenizer


ROWS, NEGATIVES, SIZE = 5, 2, 8


@pytest.fixture(scope="module")
def batch() -> ContrastiveBatch:
    collator = ContrastiveCollator(make_tokenizer(make_embedder("llama")), max_tokens=100)
    return collator(make_examples(ROWS, NEGATIVES))["batch"]


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(ROWS * (2 + NEGATIVES), SIZE, generator=torch.Generator().manual_seed(0))


def options(in_batch: bool) -> TdroOptions:
    return TdroOptions(loss_temperature=0.1, tdro_in_batch_negatives=in_batch)


def scores_of(embeddings: Tensor) -> Tensor:
    queries, passages = F.normalize(embeddings[:ROWS], dim=1), F.normalize(embeddings[ROWS:], dim=1)
    return queries @ passages.T / 0.1  # [B, B + B * K]: positives, then negatives row by row


def test_a_row_is_compared_with_its_own_passages(batch: ContrastiveBatch, embeddings: Tensor) -> None:
    scores = scores_of(embeddings)
    own = [[row, *range(ROWS + row * NEGATIVES, ROWS + (row + 1) * NEGATIVES)] for row in range(ROWS)]
    expected = torch.stack([-scores[row, places].log_softmax(0)[0] for row, places in enumerate(own)])
    torch.testing.assert_close(query_losses(embeddings, batch, options(in_batch=False)), expected)


def test_in_batch_negatives_are_the_passages_of_all_rows(batch: ContrastiveBatch, embeddings: Tensor) -> None:
    alike = dataclasses.replace(batch, passage_ids=torch.arange(ROWS * (1 + NEGATIVES)).view(ROWS, -1))
    expected = F.cross_entropy(scores_of(embeddings), torch.arange(ROWS), reduction="none")
    torch.testing.assert_close(query_losses(embeddings, alike, options(in_batch=True)), expected)


def test_rows_of_classification_tasks_still_see_their_own(batch: ContrastiveBatch, embeddings: Tensor) -> None:
    classes = torch.tensor([True, False, True, False, False])
    marked = dataclasses.replace(batch, own_passages_only=classes)
    losses = query_losses(embeddings, marked, options(in_batch=True))
    own, all_rows = (query_losses(embeddings, batch, options(in_batch)) for in_batch in (False, True))
    torch.testing.assert_close(losses, torch.where(classes, own, all_rows))
    assert (all_rows > own).all()
