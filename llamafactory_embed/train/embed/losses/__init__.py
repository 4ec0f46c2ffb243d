"""Losses as functions of embeddings, one file each; models, gathering over ranks and caching are the trainer's."""

from .angle import angle
from .cosent import cosent
from .distillation import kl_distillation, margin_mse
from .info_nce import info_nce
from .matryoshka import matryoshka
from .own_passages import own_passages_loss, repllama
from .simcse import simcse
from .similarity import Similarity


__all__ = [
    "Similarity",
    "angle",
    "cosent",
    "info_nce",
    "kl_distillation",
    "margin_mse",
    "matryoshka",
    "own_passages_loss",
    "repllama",
    "simcse",
]
