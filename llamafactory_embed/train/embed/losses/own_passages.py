"""Losses in which a query sees only its own positive and hard negatives, never another row's passages."""

from __future__ import annotations

from torch import Tensor

from ....hparams.contrastive import ComparisonOptions, ContrastiveOptions
from .rows import EmbeddedRows, own_similarities


def own_passages(rows: EmbeddedRows, options: ComparisonOptions) -> Tensor:
    """Cross entropy of each query over its own passages, of which the first one is the positive, [B].

    What tDRO measures tasks with: losses of rows of different tasks must not depend on which tasks share the batch.
    """
    similarities = own_similarities(rows.queries, rows.passages, options.similarity)  # [B, 1 + K]
    return -(similarities / options.loss_temperature).log_softmax(dim=1)[:, 0]


def repllama(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """The loss of RepLLaMA (Ma et al. 2023) as the Diffusion Embedder trains with it: cross entropy over dot products
    of unnormalized embeddings, no temperature, [B].

    `scale_by_dim` divides the dot products by d, without which they saturate the softmax at the start.
    """
    products = own_similarities(rows.queries, rows.passages, "dot")  # [B, 1 + K]
    if options.scale_by_dim:
        products = products / rows.queries.shape[-1]
    return -products.log_softmax(dim=1)[:, 0]
