"""The models that mining uses: an `Encoder` or a sentence-transformers model to search, a cross-encoder to score."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..encoder.encoder import Encoder
from ..files import whole_file
from ..loading.repository import Repository
from ..loading.sentence_transformers_folder import is_sentence_transformers_folder
from ..model.embedding_config import CONFIG_NAME


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
    """Load a folder of sentence-transformers as a SentenceTransformer, with the prompts that are its own, unless
    `settings` say how to embed; everything else as an Encoder."""
    if is_for_sentence_transformers(model) and not settings:
        return _SentenceTransformer(model, device, query_prompt, document_prompt)
    if query_prompt is not None or document_prompt is not None:
        name = "query_prompt" if query_prompt is not None else "document_prompt"
        raise ValueError(
            f"`{name}` is for sentence-transformers models; {model} has its own templates, with `instruction`."
        )
    return _EncoderOfCheckpoint(model, device, settings or {})


def is_for_sentence_transformers(model: str) -> bool:
    """Whether a model is one of sentence-transformers alone; a name that nobody knows is left to its error message."""
    try:
        repository = Repository.open(model)
    except ValueError:
        return True
    return is_sentence_transformers_folder(repository.folder) and not repository.has(CONFIG_NAME)


class _EncoderOfCheckpoint:
    def __init__(self, model: str, device: str | None, settings: Mapping[str, Any]) -> None:
        self._encoder = Encoder(model, device=device, **settings)
        self._encoder.config.require_one_vector("Mining")
        self._normalize = True if self._encoder.config.similarity == "cosine" else None

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        self._encoder.encode(texts, prompt=instructions, role="query", normalize=self._normalize, output_file=file)

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        self._encoder.encode(texts, prompt=instruction, role="document", normalize=self._normalize, output_file=file)


class _SentenceTransformer:
    def __init__(self, model: str, device: str | None, query_prompt: str | None, document_prompt: str | None) -> None:
        self._model = _load("SentenceTransformer", "model", model, device)
        similarity = self._model.similarity_fn_name
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"`model`: {model} compares by {similarity} distance; mining needs cosine or dot.")
        self._normalize = similarity == "cosine"
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        if self._query_prompt is None:
            self._save(self._model.encode_query(list(texts), **self._options), file)
            return
        prompts = [self._query_prompt.replace("{instruction}", each) for each in instructions]
        by_prompt: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_prompt.setdefault(prompt, []).append(number)
        parts = [
            self._model.encode_query([texts[number] for number in numbers], prompt=prompt, **self._options)
            for prompt, numbers in by_prompt.items()
        ]
        order = np.argsort([number for numbers in by_prompt.values() for number in numbers])
        self._save(np.concatenate(parts)[order], file)

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        prompt = {} if self._document_prompt is None else {"prompt": self._document_prompt}
        self._save(self._model.encode_document(list(texts), **prompt, **self._options), file)

    @property
    def _options(self) -> dict[str, Any]:
        return {"normalize_embeddings": self._normalize, "show_progress_bar": False, "convert_to_numpy": True}

    @staticmethod
    def _save(vectors: np.ndarray, file: Path) -> None:
        with whole_file(file) as temporary, open(temporary, "wb") as content:
            np.save(content, np.asarray(vectors, dtype=np.float32))


class CrossEncoderScores:
    """Raw scores (logits) of pairs, over which distillation takes a softmax."""

    def __init__(self, model: str, device: str | None) -> None:
        self._model = _load("CrossEncoder", "cross_encoder", model, device)
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


def _load(kind: str, option: str, model: str, device: str | None) -> Any:
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ValueError(
            f"`{option}: {model}` is no checkpoint of this package, so sentence-transformers must load it, which is "
            "not installed: pip install 'llamafactory-embed[eval]'."
        ) from error
    try:
        return getattr(package, kind)(model, device=device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`{option}`: {model} cannot be loaded as a {kind}: {reason}") from error
