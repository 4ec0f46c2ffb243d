"""The losses by name. A loss is a function of embedded rows in a file of this folder, and a line in `LOSSES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from .distillation import kl_distillation, margin_distillation
from .info_nce import info_nce
from .own_passages import repllama
from .ranking import angle, cosent
from .rows import EmbeddedRows, Similarity


@dataclass(frozen=True)
class Loss:
    """What a value of `contrastive_loss` stands for."""

    function: Callable[[EmbeddedRows, ContrastiveOptions], Tensor]
    """Returns one loss a row [B], of which the mean is taken, or one for the whole batch []."""

    needs_negatives: bool = False
    """Whether every row must have negatives."""

    needs_scores: bool = False
    """Whether every row must have scores: of each of its passages, or of the pair."""

    in_batch: bool = False
    """Whether other rows' passages are candidates, so that a row in a larger batch needs no negatives."""

    similarity: Similarity | None = None
    """How texts are compared, whatever the option `similarity` says; None: as it says."""


LOSSES: dict[str, Loss] = {
    "info_nce": Loss(info_nce, in_batch=True),
    "repllama": Loss(repllama, needs_negatives=True, similarity="dot"),
    "kl_distillation": Loss(kl_distillation, needs_negatives=True, needs_scores=True),
    "margin_distillation": Loss(margin_distillation, needs_negatives=True, needs_scores=True),
    "cosent": Loss(cosent, needs_scores=True, similarity="cosine"),
    "angle": Loss(angle, needs_scores=True, similarity="cosine"),
}
