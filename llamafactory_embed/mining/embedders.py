"""The models that mining uses: an embedder to search, a cross-encoder to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..encoder.encoder import Encoder
from ..encoder.foreign import SentenceTransformersEncoder, open_encoder


AnyEncoder = Encoder | SentenceTransformersEncoder


class Embedder(Protocol):
    """Writes embeddings whose inner product is the model's similarity."""

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        """Embed queries, each with its instruction, into a `.npy` file [n, d] of float32."""

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        """Embed documents; those of a symmetric task get its instruction, others none."""


def load_embedder(
    model: str,
    device: str | None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Embedder:
    """Load what `model` names. A folder of sentence-transformers embeds with prompts: its own, or those that are
    given. Any other checkpoint, and such a folder with `settings` that say how to embed, takes instructions."""
    encoder = open_encoder(model, device=device, **(settings or {}))
    if isinstance(encoder, Encoder):
        encoder.config.require_one_vector("Mining")
    normalize = True if _similarity_of(encoder, model) == "cosine" else None
    source = encoder.source if isinstance(encoder, Encoder) else None
    if not settings and (source is None or source.kind == "sentence-transformers"):
        if document_prompt is not None and isinstance(encoder, Encoder):
            encoder = Encoder(encoder.model, encoder.tokenizer.tokenizer, document_template="{text}")
        return _WithPrompts(encoder, normalize, query_prompt, document_prompt)
    if query_prompt is not None or document_prompt is not None:
        name = "query_prompt" if query_prompt is not None else "document_prompt"
        raise ValueError(
            f"`{name}` is for sentence-transformers models; {model} has its own templates, with `instruction`."
        )
    return _WithInstructions(encoder, normalize)


def _similarity_of(encoder: AnyEncoder, model: str) -> str:
    """How the model compares."""
    if isinstance(encoder, Encoder):
        return encoder.config.similarity
    similarity = encoder.model.similarity_fn_name
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"`model`: {model} compares by {similarity} distance; mining needs cosine or dot.")
    return similarity


@dataclass(frozen=True)
class _WithInstructions:
    """What was trained with instructions, and writes them by its own template."""

    encoder: AnyEncoder
    normalize: bool | None

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        self.encoder.encode(texts, prompt=instructions, role="query", normalize=self.normalize, output_file=file)

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        self.encoder.encode(texts, prompt=instruction, role="document", normalize=self.normalize, output_file=file)


@dataclass(frozen=True)
class _WithPrompts:
    """What puts a prompt before a text; without a given one, its own."""

    encoder: AnyEncoder
    normalize: bool | None
    query_prompt: str | None
    document_prompt: str | None

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        given = self.query_prompt
        prompts = None if given is None else [given.replace("{instruction}", each) for each in instructions]
        self.encoder.encode(texts, prompt=prompts, role="query", normalize=self.normalize, output_file=file)

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        self.encoder.encode(
            texts, prompt=self.document_prompt, role="document", normalize=self.normalize, output_file=file
        )


class CrossEncoderScores:
    """Raw scores (logits) of pairs, over which distillation takes a softmax."""

    def __init__(self, model: str, device: str | None) -> None:
        self._model = _load_cross_encoder(model, device)
        if self._model.num_labels != 1:
            raise ValueError(
                f"`cross_encoder`: {model} gives {self._model.num_labels} numbers for a pair; mining needs one, the "
                "relevance score."
            )

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The scores [n] of (query, passage) pairs."""
        import torch

        if not pairs:
            return np.empty(0, dtype=np.float32)
        scores = self._model.predict(list(pairs), activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32)


def _load_cross_encoder(model: str, device: str | None) -> Any:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise ValueError(
            f"`cross_encoder: {model}` is loaded by sentence-transformers, which is not installed: pip install "
            "'llamafactory-embed[eval]'."
        ) from error
    try:
        return CrossEncoder(model, device=device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`cross_encoder`: {model} cannot be loaded as a CrossEncoder: {reason}") from error
