"""The loss of a recipe as one function of a batch's embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from ..losses import LOSSES
from ..losses.rows import EmbeddedRows
from .batch import ContrastiveBatch


class ContrastiveObjective:
    """Call it with embeddings [2B + B*K, d] in the order of `ContrastiveBatch`."""

    def __init__(self, options: ContrastiveOptions) -> None:
        self.options = options
        self.loss = LOSSES[options.contrastive_loss]

    def __call__(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        self._check(batch)
        rows = batch.with_embeddings(embeddings.float())
        losses = [self.loss.function(prefix, self.options).mean() for prefix in self._prefixes(rows)]
        return torch.stack(losses).sum()

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
        if self.loss.needs_negatives and batch.negatives_per_row == 0:
            raise ValueError(
                f"`contrastive_loss: {name}` compares a query's positive with its own negatives, but the rows have "
                "none: set `num_negatives` to at least 1 and use data with negatives."
            )
        if self.loss.needs_scores and batch.scores is None:
            raise ValueError(f"`contrastive_loss: {name}` needs data with a `score` column; these rows have none.")
