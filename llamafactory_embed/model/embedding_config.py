"""What a checkpoint remembers so that it is served as it was trained."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..hparams.embedding import EmbeddingOptions
from .pooling import Pooling, needs_eos


CONFIG_NAME = "embedding_config.json"


@dataclass(frozen=True)
class EmbeddingConfig:
    """Attention, pooling, prompts and lengths of an embedder."""

    attention: Literal["bidirectional", "causal"]
    sliding_window: Literal["keep", "ignore"]
    pooling: Pooling
    latents: int
    latent_heads: int
    latent_head_size: int | None
    skip_instruction: bool
    query_template: str
    document_template: str
    query_max_length: int
    document_max_length: int
    normalize: bool
    max_tokens_per_batch: int | None
    similarity: Literal["cosine", "dot"] = "cosine"
    matryoshka_dims: list[int] | None = None
    instructions: dict[str, str] = field(default_factory=dict)
    """The instruction of each task that was trained, by the task's name."""
    symmetric_tasks: list[str] = field(default_factory=list)
    """Tasks whose documents are written like queries."""
    base_model: str | None = None
    """The model below the adapter, for a checkpoint that holds an adapter only."""
    merged_adapters: list[str] = field(default_factory=list)
    """Adapters merged into the base model before this one, in that order."""

    @classmethod
    def from_options(cls, options: EmbeddingOptions, cutoff_len: int, **more: Any) -> EmbeddingConfig:
        """The part of the configuration that a recipe's options decide."""
        return cls(
            attention=options.attention,
            sliding_window=options.sliding_window,
            pooling=options.pooling,
            latents=options.latents,
            latent_heads=options.latent_heads,
            latent_head_size=options.latent_head_size,
            skip_instruction=options.skip_instruction,
            query_template=options.query_template,
            document_template=options.document_template,
            query_max_length=options.query_max_length or cutoff_len,
            document_max_length=options.document_max_length or cutoff_len,
            normalize=options.normalize_embeddings,
            max_tokens_per_batch=options.max_tokens_per_batch,
            **more,
        )

    @property
    def causal(self) -> bool:
        return self.attention == "causal"

    @property
    def append_eos(self) -> bool:
        """Whether pooling reads an EOS token that tokenization must append."""
        return needs_eos(self.pooling, self.causal)

    @property
    def compares_unit_length(self) -> bool:
        """Whether the model's similarity is the inner product of embeddings brought to unit length, rather than of
        embeddings as they are."""
        return self.normalize or self.similarity == "cosine"

    def save(self, folder: str | Path) -> None:
        """Write to a temporary name, then rename: a reader never sees half a file."""
        path = Path(folder) / CONFIG_NAME
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingConfig:
        """Read it back from a checkpoint."""
        path = Path(folder) / CONFIG_NAME
        if not path.is_file():
            raise ValueError(f"{folder} is not a checkpoint of an embedder: it holds no {CONFIG_NAME}.")
        values = json.loads(path.read_text("utf-8"))
        known = {each.name for each in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{path} has the key `{unknown[0]}`, which this release does not know: it was written by a newer "
                "llamafactory-embed, upgrade it."
            )
        return cls(**values)
