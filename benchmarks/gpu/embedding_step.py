"""A training step of `stage: contrastive` without the host: the same model, packed rows, loss and cached backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamafactory_embed.hparams.contrastive import ContrastiveOptions
from llamafactory_embed.hparams.embedding import EmbeddingOptions
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.model.packed import PackedBatch, pack_texts
from llamafactory_embed.train.embed.grad_cache import cached_backward
from llamafactory_embed.train.embed.losses.info_nce import info_nce
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows

from .shapes import mixed_lengths, random_texts


TEMPERATURE = 0.05
LEARNING_RATE = 1e-5
LORA_RANK = 16
LONGEST_NORM = 1.0
USED_TOKENS = 400  # every model here has as many


@dataclass(frozen=True)
class Rows:
    """The texts of a batch: all queries, then all positives, then, where there are any, all negatives."""

    count: int
    texts: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Of all texts."""
        return [len(text) for text in self.texts]

    @property
    def columns(self) -> list[list[list[int]]]:
        """Queries, positives, …"""
        return [self.texts[start : start + self.count] for start in range(0, len(self.texts), self.count)]

    def packed(self, max_tokens: int | None) -> list[PackedBatch]:
        """Rows of at most so many tokens."""
        return pack_texts(self.texts, max_tokens)


def make_rows(count: int, columns: int, longest: int, fill: float) -> Rows:
    """Random texts; every column has the same lengths in another order."""
    lengths = [length for column in range(columns) for length in mixed_lengths(count, longest, fill, seed=column)]
    return Rows(count, random_texts(lengths, USED_TOKENS))


def make_embedder(backbone: Any, backend: Any) -> EmbeddingModel:
    """An embedder with mean pooling and bidirectional attention around a bare decoder."""
    config = EmbeddingConfig.from_options(EmbeddingOptions(), cutoff_len=4096)
    return EmbeddingModel(backbone, config, backend=backend).train()


def with_lora(backbone: Any) -> Any:
    """LoRA layers beside all projections, as recipes have them."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(backbone, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"))


def loss_of(embeddings: Tensor, rows: int, candidate_tile: int | None = None) -> Tensor:
    """InfoNCE over a batch in the order of `Rows`, [columns * rows, d]."""
    queries, *passages = embeddings.split(rows)
    options = ContrastiveOptions(
        num_negatives=len(passages) - 1, loss_temperature=TEMPERATURE, candidate_tile=candidate_tile
    )
    return info_nce(EmbeddedRows(queries, torch.stack(passages, dim=1)), options).mean()


def plain_step(model: EmbeddingModel, batches: Sequence[PackedBatch], rows: int) -> Tensor:
    """Forward and backward of a whole batch; returns the loss."""
    loss = loss_of(model(batches), rows)
    loss.backward()
    return loss.detach()


def cached_step(
    model: EmbeddingModel, chunks: Sequence[PackedBatch], rows: int, candidate_tile: int | None = None
) -> Tensor:
    """The same with GradCache."""
    return cached_backward(
        model,
        chunks,
        lambda embeddings: loss_of(embeddings, rows, candidate_tile),
        lambda scalar: scalar.backward(),
        device=model.device,
    )


def optimized(model: torch.nn.Module, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step with clipping and AdamW behind it."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = learning[0].device.type
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, fused=device == "cuda")

    def whole() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = step()
        torch.nn.utils.clip_grad_norm_(learning, LONGEST_NORM)
        optimizer.step()
        return loss

    return whole
