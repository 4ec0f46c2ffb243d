"""Baselines that have learned nothing: BM25 and TF-IDF, as models that mteb can search with."""

from __future__ import annotations

from typing import Any

import mteb
import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from scipy.sparse import diags
from sklearn.feature_extraction.text import CountVectorizer

from .answers import words
from .models import EMPTY_META, LEXICAL_REVISION
from .tasks import texts_of
from .word_weights import bm25_weights, tfidf_weights


QUERIES_AT_ONCE = 64


class LexicalSearch:
    """Compares words. The corpus is a sparse matrix [D, V] of weights, a query the counts of its words."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.mteb_model_meta = ModelMeta(
            **EMPTY_META,
            name=f"baseline/{kind}",
            revision=LEXICAL_REVISION,
            framework=["NumPy"],
            model_type=["sparse"],
        )

    def index(self, corpus: Any, *, task_metadata: TaskMetadata, **kwargs: Any) -> None:
        """Count the words of the corpus."""
        self._ids = [str(each) for each in corpus["id"]]
        self._counter = CountVectorizer(analyzer=words, dtype=np.float64)
        counts = self._counter.fit_transform(texts_of(corpus, task_metadata, mteb.types.PromptType.document))
        self._weights, self._query_weights = (bm25_weights if self.kind == "bm25" else tfidf_weights)(counts)

    def search(
        self, queries: Any, *, task_metadata: TaskMetadata, top_k: int, top_ranked: Any = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """The documents that share the most telling words with each query. A document that shares none is not a
        result, unless it is one of the candidates to be scored."""
        texts = texts_of(queries, task_metadata, mteb.types.PromptType.query)
        counts = self._counter.transform(texts) @ diags(self._query_weights)
        place = {key: index for index, key in enumerate(self._ids)}
        results = {}
        for start in range(0, len(texts), QUERIES_AT_ONCE):
            scores = np.asarray((counts[start : start + QUERIES_AT_ONCE] @ self._weights.T).todense())
            for query, row in zip(queries["id"][start : start + QUERIES_AT_ONCE], scores, strict=True):
                if top_ranked is None:
                    documents = np.flatnonzero(row)
                else:
                    documents = np.array([place[key] for key in top_ranked.get(query, ())], dtype=int)
                best = documents[np.argsort(-row[documents], kind="stable")[:top_k]]
                results[str(query)] = {self._ids[index]: float(row[index]) for index in best}
        return results
