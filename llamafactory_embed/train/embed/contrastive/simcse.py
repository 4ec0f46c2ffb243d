"""SimCSE (Gao et al. 2021, as LLM2Vec trains it): a text is its own positive under other dropout."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ....data.retrieval.rows import Row


# What the architectures of transformers call the dropout of attention probabilities.
ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout")


def refuse_equal_views(rows: Sequence[Row]) -> None:
    """Refuse plain texts for a model without dropout, which embeds a text and its positive alike."""
    if all(row.positives == (row.query,) for row in rows):
        raise ValueError(
            "The data are plain texts, each its own positive, which a model without dropout cannot tell apart: set "
            "`simcse_dropout` (LLM2Vec uses 0.3), or use rows of query and positive."
        )


def set_attention_dropout(decoder: PreTrainedModel, dropout: float) -> None:
    """Drop attention probabilities while training, so that two embeddings of a text differ. Set on the modules: the
    configuration, which is saved with the checkpoint, stays as it is."""
    reached = 0
    for module in decoder.modules():
        names = inspect.unwrap(type(module).forward).__code__.co_names
        for name in set(ATTENTION_DROPOUT).intersection(names):
            if isinstance(getattr(module, name), nn.Dropout):
                getattr(module, name).p = dropout
            else:
                setattr(module, name, dropout)
            reached += 1
    layers = decoder.config.num_hidden_layers
    if reached != layers:
        raise ValueError(
            f"`simcse_dropout` reaches the attention of {reached} of the {layers} layers of {type(decoder).__name__}: "
            "use a model whose attention has its dropout where Llama or GPT-2 have it."
        )
