"""The losses by name. A loss is a function of embedded rows in a file of this folder, with a line in `FUNCTIONS`; what
it needs is a line in `hparams.contrastive.LOSSES`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from .distillation import kl_distillation, margin_distillation
from .info_nce import info_nce
from .labelled_pairs import mse, online_pairs, pairs, triplet
from .own_passages import repllama
from .ranking import angle, cosent
from .rows import EmbeddedRows, SetRows
from .vectors import vector_distillation


LossFunction = Callable[[EmbeddedRows, ContrastiveOptions], Tensor]
"""Returns one loss for each row [B], of which the mean is taken, or one for the whole batch []."""

SetLossFunction = Callable[[SetRows, ContrastiveOptions], Tensor]
"""The same for texts of several vectors."""

FUNCTIONS: dict[str, LossFunction] = {
    "info_nce": info_nce,
    "repllama": repllama,
    "kl_distillation": kl_distillation,
    "margin_distillation": margin_distillation,
    "cosent": cosent,
    "angle": angle,
    "mse": mse,
    "pairs": pairs,
    "online_pairs": online_pairs,
    "triplet": triplet,
    "vector_distillation": vector_distillation,
}

# Those with `takes_sets` in LOSSES.
SET_FUNCTIONS: dict[str, SetLossFunction] = {
    "info_nce": info_nce,
    "kl_distillation": kl_distillation,
    "margin_distillation": margin_distillation,
}
