"""The loss of a recipe as one function of a batch's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....hparams.contrastive import LOSSES, ContrastiveOptions
from ..losses import FUNCTIONS
from ..losses.distillation import kl_distillation
from ..losses.rows import EmbeddedRows
from .batch import ContrastiveBatch


class ContrastiveObjective:
    """Call it with embeddings [2B + B*K, d] in the order of `ContrastiveBatch`."""

    def __init__(self, options: ContrastiveOptions) -> None:
        self.options = options
        self.facts = LOSSES[options.contrastive_loss]
        self.function = FUNCTIONS[options.contrastive_loss]

    def __call__(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        self._check(batch)
        rows = batch.with_embeddings(embeddings.float())
        return torch.stack([self._loss(prefix) for prefix in self._prefixes(rows)]).sum()

    def _loss(self, rows: EmbeddedRows) -> Tensor:
        """The loss, and with `kl_weight` the divergence from the teacher if there is one for these rows."""
        loss = self.function(rows, self.options).mean()
        if self.options.kl_weight and has_teacher(rows):
            loss = loss + self.options.kl_weight * kl_distillation(rows, self.options).mean()
        return loss

    def _prefixes(self, rows: EmbeddedRows) -> Sequence[EmbeddedRows]:
        """Matryoshka (Kusupati et al. 2022): the first numbers of an embedding must be a good embedding themselves.
        Losses on cosines normalize each prefix anew; with dot products prefixes stay as they are."""
        dims, size = self.options.matryoshka_dims, rows.queries.shape[-1]
        if dims is None:
            return [rows]
        if not dims or not all(0 < dim <= size for dim in dims):
            raise ValueError(f"`matryoshka_dims` must lie between 1 and the embedding's size {size}, not {dims}.")
        return [rows.prefix(dim) for dim in dims]

    def _check(self, batch: ContrastiveBatch) -> None:
        name = self.options.contrastive_loss
        if self.facts.needs_negatives and batch.negatives_per_row == 0:
            raise ValueError(
                f"`contrastive_loss: {name}` compares a query's positive with its own negatives, but the rows have "
                "none: set `num_negatives` to at least 1 and use data with negatives."
            )
        if self.facts.needs_scores and batch.scores is None:
            raise ValueError(f"`contrastive_loss: {name}` needs data with a `score` column; these rows have none.")


def has_teacher(rows: EmbeddedRows) -> bool:
    """Whether each of several passages of every row has a score, rather than the row as a scored pair, or nothing."""
    return rows.scores is not None and rows.scores.shape == rows.passages.shape[:2] and rows.scores.shape[1] > 1
