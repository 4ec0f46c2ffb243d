"""Small embedders and batches for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, cat

from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.data.retrieval.rows import Example
from llamafactory_embed.hparams.embedding import EmbeddingOptions
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.embedding_config import EmbeddingConfig
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from tests.tiny_models import tiny_model, tiny_tokenizer


INSTRUCTION = "Given a line, retrieve the line that follows"
PROSE = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8").splitlines()


def make_config(**options: Any) -> EmbeddingConfig:
    """An embedder's configuration from a recipe's options."""
    more = {name: options.pop(name) for name in ("instructions", "symmetric_tasks", "base_model") if name in options}
    more |= {
        name: options.pop(name)
        for name in ("similarity", "matryoshka_dims", "multi_vector", "mask_token")
        if name in options
    }
    return EmbeddingConfig.from_options(EmbeddingOptions(**options), cutoff_len=48, **more)


def make_embedder(
    family: str = "llama", lora_dropout: float | None = None, seed: int = 0, **options: Any
) -> EmbeddingModel:
    """A tiny embedder, with LoRA layers if a dropout for them is given."""
    backbone: Any = tiny_model(family, seed)
    if lora_dropout is not None:
        adapter = LoraConfig(r=4, lora_alpha=8, lora_dropout=lora_dropout, target_modules="all-linear")
        backbone = get_peft_model(backbone, adapter)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:  # starts at zero, where the gradient of A vanishes
                parameter.data.normal_(std=0.1)
    return EmbeddingModel(backbone, make_config(**({"latents": 4, "latent_heads": 4} | options)))


def make_examples(rows: int = 6, negatives: int = 1, scores: bool = False) -> list[Example]:
    """Rows whose positive is the next line of some prose and whose negatives are later ones."""
    return [
        Example(
            task="prose",
            task_index=0,
            row_index=row,
            query=PROSE[row],
            positive=PROSE[row + 1],
            negatives=tuple(PROSE[(row + 3 + k) % len(PROSE)][: 20 + 5 * k] for k in range(negatives)),
            scores=tuple(1.0 / (k + row + 1) for k in range(1 + negatives)) if scores else None,
            query_instruction=INSTRUCTION if row % 2 else "",
            passage_instruction="",
            own_passages_only=False,
        )
        for row in range(rows)
    ]


def make_tokenizer(model: EmbeddingModel) -> EmbeddingTokenizer:
    return EmbeddingTokenizer(tiny_tokenizer(), model.embedding_config)


def make_rows(queries: Tensor, positives: Tensor, negatives: Tensor | None = None, **more: Any) -> EmbeddedRows:
    """Queries and positives [B, d], and negatives [B * K, d] row by row, as a loss gets them."""
    passages = positives.unsqueeze(1)
    if negatives is not None:
        each = len(negatives) // len(queries)
        passages = cat([passages, negatives.view(len(queries), each, queries.shape[-1])], dim=1)
    return EmbeddedRows(queries, passages, **more)
