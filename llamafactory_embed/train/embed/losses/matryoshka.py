"""Matryoshka: the first numbers of an embedding must be a good embedding themselves (Kusupati et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def matryoshka(
    loss_function: Callable[..., Tensor],
    *embeddings: Tensor | None,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Σ weight * loss of the first `dim` numbers of all embeddings (last dimension), by default with weights 1.

    `loss_function` takes the embeddings alone, in that order (None stays None); bind the rest with
    `functools.partial`. Losses on cosines normalize each prefix anew; with dot products prefixes stay as they are.
    """
    weights = [1.0] * len(dims) if weights is None else weights
    if not dims or len(weights) != len(dims):
        raise ValueError(
            f"`matryoshka_weights` must give one weight for each of `matryoshka_dims`: {len(weights)} for {len(dims)}."
        )
    size = next(embedding.shape[-1] for embedding in embeddings if embedding is not None)
    if not all(0 < dim <= size for dim in dims):
        raise ValueError(f"`matryoshka_dims` must lie between 1 and the embedding's size {size}, not {list(dims)}.")
    losses = [
        weight * loss_function(*(None if embedding is None else embedding[..., :dim] for embedding in embeddings))
        for dim, weight in zip(dims, weights, strict=True)
    ]
    return torch.stack(losses).sum(dim=0)
