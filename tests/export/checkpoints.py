"""Checkpoints to export, and what training would have embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamafactory_embed.data.embedding_tokenizer import EmbeddingTokenizer
from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.model.embedding import EmbeddingModel
from llamafactory_embed.model.packed import pack_texts
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.tiny_models import save_tiny_model, tiny_tokenizer


TASKS = {"instructions": {"next_line": INSTRUCTION, "same": "Find alike"}, "symmetric_tasks": ["same"]}
# Of one token and of many; the last one is longer than the 48 tokens of these checkpoints.
TEXTS = ["a", "Where?", *PROSE[:4], " ".join(PROSE[:5])]


@dataclass(frozen=True)
class Trained:
    """A model as training has it in memory, its adapter not merged, and the folder that it was saved to."""

    model: EmbeddingModel
    tokenizer: EmbeddingTokenizer
    folder: Path

    @classmethod
    def save(cls, model: EmbeddingModel, folder: Path) -> Trained:
        """Write a checkpoint as the trainer does."""
        save_checkpoint(model, folder)
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        return cls(model, EmbeddingTokenizer(tokenizer, model.embedding_config), folder)

    def embed(self, texts: Sequence[str] = TEXTS, instruction: str = "", as_query: bool = False) -> np.ndarray:
        """Vectors of unit length, one text at a time."""
        tokenize = self.tokenizer.queries if as_query else self.tokenizer.documents
        with torch.no_grad():
            rows = [
                self.model(pack_texts([each.token_ids], None, [each.pooled_from]))
                for each in tokenize(texts, instruction)
            ]
        return torch.nn.functional.normalize(torch.cat(rows), dim=1).numpy()


def train(folder: Path, family: str = "llama", adapter: bool = True, **options: Any) -> Trained:
    """A random embedder, saved as the trainer saves it."""
    base = save_tiny_model(folder / "base", family)
    model = make_embedder(family, lora_dropout=0.1 if adapter else None, base_model=str(base), **(TASKS | options))
    return Trained.save(model.eval(), folder / "checkpoint")


def make_recipe(folder: Path, **options: Any) -> dict[str, Any]:
    """Of `llamafactory-cli export`, as the host's examples have it: without `stage`."""
    return {
        "model_name_or_path": str(folder / "base"),
        "adapter_name_or_path": str(folder / "checkpoint"),
        "template": "default",
        "trust_remote_code": False,
        "export_dir": str(folder / "exported"),
        "export_device": "cpu",
        **options,
    }
