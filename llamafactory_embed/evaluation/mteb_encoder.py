"""Our `Encoder` as a model of mteb 2: it embeds (EncoderProtocol) and searches (SearchProtocol)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from mteb import types as mteb_types
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

from ..encoder.encoder import Encoder, Role
from ..files import digest
from ..hparams.embedding import Precision
from .chunks import Parts, cut_texts, split_documents, whole_documents
from .prompts import Instructions, OwnPrompts
from .search import EXACT, Corpus, as_searched, as_stored, search_exactly, search_with_faiss
from .tasks import texts_of
from .vector_store import VectorStore


DOCUMENTS_AT_ONCE = 50_000  # texts of a corpus that are looked at together
EMBEDDED_AT_ONCE = 2048  # on each device; what a crash may cost


class MtebEncoder:
    """What mteb runs. Vectors are kept whole on disk; cutting and normalizing happen when they are compared."""

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        instructions: Instructions | OwnPrompts,
        vectors: Path,
        *,
        dimension: int | None = None,
        split_long_documents: bool = False,
        index: str = EXACT,
        devices: Sequence[str] | None = None,
        text_max_length: int | None = None,
        top_k: int | None = None,
        precision: Precision = "float32",
        rescore_multiplier: int = 1,
    ) -> None:
        encoder.encode([], dimensions=dimension)  # refuses a size that was not trained
        self.encoder = encoder
        self.mteb_model_meta = meta
        self.instructions = instructions
        self.dimension = dimension or encoder.dimension
        self.precision = precision
        self.rescore_multiplier = rescore_multiplier
        self.ranges = encoder.ranges_for(precision, self.dimension, encoder.config.normalize)
        self.split_long_documents = split_long_documents
        self.index_spec = index
        self.devices = list(devices) if devices is not None and len(devices) > 1 else None
        self.text_max_length = text_max_length
        self.top_k = top_k
        self.search_device = torch.device(self.devices[0]) if self.devices else encoder.model.device
        self._vectors = vectors
        self._stores: dict[tuple[str, Role], VectorStore] = {}
        self._corpus: tuple[Corpus, Dataset] | None = None

    # EncoderProtocol

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: mteb_types.PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings [N, d] of a data loader's texts. Without a prompt type all texts are of one kind, and embedded as
        queries, with the task's instruction if it has one."""
        texts = [text for batch in inputs for text in batch["text"]]
        store, rows = self._embed(texts, task_metadata, prompt_type)
        vectors = as_searched(store.vectors[rows], self.dimension, self.encoder.config.normalize)
        return as_stored(vectors, self.precision, self.ranges).numpy()

    def similarity(self, embeddings1: mteb_types.Array, embeddings2: mteb_types.Array) -> Any:
        """All pairs, [N, M]."""
        return (dot_score if self.is_dot else cos_sim)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: mteb_types.Array, embeddings2: mteb_types.Array) -> Any:
        """Corresponding pairs, [N]."""
        return (pairwise_dot_score if self.is_dot else pairwise_cos_sim)(embeddings1, embeddings2)

    @property
    def is_dot(self) -> bool:
        """Whether the model compares by inner product."""
        return self.encoder.config.similarity == "dot"

    # SearchProtocol

    def index(self, corpus: Dataset, *, task_metadata: TaskMetadata, **kwargs: Any) -> None:
        """Embed a corpus onto the disk, window by window."""
        document = mteb_types.PromptType.document
        rows, owners = [], []
        for start in range(0, len(corpus), DOCUMENTS_AT_ONCE):
            window = corpus.select(range(start, min(start + DOCUMENTS_AT_ONCE, len(corpus))))
            parts = self._split(texts_of(window, task_metadata, document), task_metadata)
            store, rows_of_parts = self._embed(parts.texts, task_metadata, document)
            rows.append(rows_of_parts)
            owners.append(parts.owners + start)
        vectors = Corpus(
            store.vectors,
            np.concatenate(rows),
            np.concatenate(owners),
            self.dimension,
            self.encoder.config.compares_unit_length,
            precision=self.precision,
            stored_unit_length=self.encoder.config.normalize,
            ranges=self.ranges,
            rescore_multiplier=self.rescore_multiplier,
        )
        self._corpus = vectors, corpus

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """The best documents for each query with their similarities; where candidates are given, those only."""
        if self._corpus is None:
            raise RuntimeError("`search` comes after `index`.")
        corpus, documents = self._corpus
        query = mteb_types.PromptType.query
        store, rows = self._embed(texts_of(queries, task_metadata, query), task_metadata, query)
        vectors = as_searched(store.vectors[rows], self.dimension, corpus.unit_length)
        names = [str(key) for key in queries["id"]]
        top_k = top_k if self.top_k is None else min(top_k, self.top_k)
        if top_ranked is not None:
            most_left_out = corpus.size - min((len(top_ranked.get(name, ())) for name in names), default=0)
            if most_left_out <= corpus.size // 2:
                return self._search_candidates(names, vectors, top_ranked, top_k, most_left_out)
            return self._score_candidates(dict(zip(names, vectors, strict=True)), top_ranked)
        if self.index_spec == EXACT:
            scores, places = search_exactly(vectors, corpus, top_k, self.search_device)
        else:
            scores, places = search_with_faiss(vectors, corpus, top_k, self.index_spec)
        ids = _ids_of(documents, places)
        return {
            name: {ids[place]: score for score, place in zip(*pair, strict=True) if place >= 0}
            for name, *pair in zip(names, scores.tolist(), places.tolist(), strict=True)
        }

    def _score_candidates(
        self, queries: dict[str, torch.Tensor], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, float]]:
        assert self._corpus is not None
        corpus, documents = self._corpus
        place = {str(key): index for index, key in enumerate(documents["id"][:])}
        results = {}
        for name, vector in queries.items():
            scores = {}
            for key in map(str, candidates.get(name, ())):
                first, last = np.searchsorted(corpus.owners, [place[key], place[key] + 1])
                scores[key] = float((corpus.read(slice(first, last)) @ vector).max())
            results[name] = scores
        return results

    def _search_candidates(
        self,
        names: Sequence[str],
        vectors: torch.Tensor,
        candidates: Mapping[str, Sequence[str]],
        top_k: int,
        most_left_out: int,
    ) -> dict[str, dict[str, float]]:
        """The best candidates where they are most of the corpus: BRIGHT leaves a few documents out for each query.
        However many of those come first, enough documents are ranked."""
        assert self._corpus is not None
        corpus, documents = self._corpus
        scores, places = search_exactly(vectors, corpus, top_k + most_left_out, self.search_device)
        ids = _ids_of(documents, places)
        results = {}
        for name, *pair in zip(names, scores.tolist(), places.tolist(), strict=True):
            allowed = set(map(str, candidates.get(name, ())))
            ranked = [(ids[place], score) for score, place in zip(*pair, strict=True) if ids[place] in allowed]
            results[name] = dict(ranked[:top_k])
        return results

    def close(self) -> None:
        """Let other runs use the vectors, and end the processes on other devices."""
        for store in self._stores.values():
            store.close()
        self._stores = {}
        self.encoder.close()

    def _split(self, texts: Sequence[str], task: TaskMetadata) -> Parts:
        if not self.split_long_documents:
            return whole_documents(texts)
        return split_documents(self.encoder, texts, self.instructions.find(task, "document"))

    def _embed(
        self, texts: Sequence[str], task: TaskMetadata, prompt_type: mteb_types.PromptType | None
    ) -> tuple[VectorStore, np.ndarray]:
        """The store that holds these texts' vectors, and their rows in it."""
        instruction = self.instructions.find(task, None if prompt_type is None else prompt_type.value)
        # A document with an instruction is one of a symmetric task, and written like a query.
        role: Role = "document" if prompt_type == mteb_types.PromptType.document else "query"
        store = self._store(instruction, role)
        if self.text_max_length is not None:
            texts = cut_texts(self.encoder.tokenizer.tokenizer, texts, self.text_max_length)

        def embed(part: Sequence[str]) -> np.ndarray:
            return self.encoder.encode(part, prompt=instruction, role=role, normalize=False, devices=self.devices)

        window = EMBEDDED_AT_ONCE * len(self.devices or [""])
        return store, store.rows(texts, embed, window, title=f"{task.name}, {role}")

    def _store(self, instruction: str, role: Role) -> VectorStore:
        key = (instruction, role)
        if key not in self._stores:
            about = {"role": role, "instruction": instruction, **self.encoder.overrides}
            self._stores[key] = VectorStore(
                self._vectors / digest(json.dumps(about)).hex(), self.encoder.dimension, about
            )
        return self._stores[key]


def _ids_of(corpus: Dataset, places: torch.Tensor) -> dict[int, str]:
    """The ids of the documents that were found, by their places; the others stay on disk."""
    found = np.unique(places.numpy())
    found = found[found >= 0]
    return dict(zip(found.tolist(), map(str, corpus.select(found)["id"][:]), strict=True))
