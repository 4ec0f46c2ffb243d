"""SimCSE: two views of the same text, by different dropout, are each other's positive (Gao et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from .info_nce import info_nce
from .similarity import Reduction, Similarity


def simcse(
    first_views: Tensor,
    second_views: Tensor,
    *,
    temperature: float,
    similarity: Similarity = "cosine",
    targets: Tensor | None = None,
    duplicates: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """First views [B, d] find their second view among those of the whole batch [P, d]; see `info_nce`."""
    return info_nce(
        first_views,
        second_views,
        temperature=temperature,
        similarity=similarity,
        targets=targets,
        duplicates=duplicates,
        reduction=reduction,
    )
