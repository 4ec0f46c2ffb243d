"""A model of several vectors a text as mteb searches with it: MaxSim with all documents, which are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.types import PromptType

from ..encoder.encoder import Encoder, Role
from ..model.vector_sets import VectorSets, max_sim
from .chunks import cut_texts
from .options import EvaluationOptions
from .prompts import Instructions, OwnPrompts
from .search import EXACT
from .tasks import texts_of


QUERIES_AT_ONCE = 64


def check_search_of_sets(options: EvaluationOptions) -> None:
    """Refuse what is built for one vector a text."""
    asked = {
        "precisions": any(precision != "float32" for precision in options.precisions or ()),
        "index": options.index != EXACT,
        "long_documents": options.long_documents != "truncate",
        "devices": len(options.devices or ()) > 1,
    }
    for name, is_set in asked.items():
        if is_set:
            raise ValueError(
                f"`{name}` is built for one vector a text, and this checkpoint has one for every token "
                "(`multi_vector: true`): leave it out."
            )


class SetSearch:
    """Embeds a corpus once, and compares every query with all of it, or with its candidates."""

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        instructions: Instructions | OwnPrompts,
        *,
        dimension: int | None,
        text_max_length: int | None,
        top_k: int | None,
    ) -> None:
        encoder.check_dimensions(dimension)
        self.encoder = encoder
        self.mteb_model_meta = meta
        self.instructions = instructions
        self.dimension = dimension
        self.text_max_length = text_max_length
        self.top_k = top_k

    def index(self, corpus: Dataset, *, task_metadata: TaskMetadata, **kwargs: Any) -> None:
        """Embed a corpus."""
        self._ids = [str(key) for key in corpus["id"]]
        self._documents = self._embed(corpus, task_metadata, PromptType.document)

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
        depth = top_k if self.top_k is None else min(top_k, self.top_k)
        place = {key: index for index, key in enumerate(self._ids)}
        names = [str(key) for key in queries["id"]]
        results = {}
        for start, part in enumerate(self._embed(queries, task_metadata, PromptType.query).split(QUERIES_AT_ONCE)):
            similarities = max_sim(part, self._documents)
            for name, row in zip(names[start * QUERIES_AT_ONCE :], similarities, strict=False):
                allowed: Sequence[int] = range(len(self._ids))
                if top_ranked is not None:
                    allowed = [place[str(key)] for key in top_ranked.get(name, ())]
                places = torch.tensor(allowed, dtype=torch.long)
                order = row[places].sort(descending=True, stable=True).indices[:depth]
                results[name] = {self._ids[index]: float(row[index]) for index in places[order].tolist()}
        return results

    def _embed(self, rows: Dataset, task: TaskMetadata, prompt_type: PromptType) -> VectorSets:
        role: Role = "document" if prompt_type == PromptType.document else "query"
        texts = texts_of(rows, task, prompt_type)
        if self.text_max_length is not None:
            texts = cut_texts(self.encoder.tokenizer.tokenizer, texts, self.text_max_length)
        instruction = self.instructions.find(task, prompt_type.value)
        return VectorSets.of(
            self.encoder.encode(texts, prompt=instruction, role=role, dimensions=self.dimension, convert_to="torch")
        )
