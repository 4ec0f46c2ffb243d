"""Baselines that have learned nothing: BM25 and TF-IDF, as models that mteb can search with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from scipy.sparse import diags
from sklearn.feature_extraction.text import CountVectorizer

from .answers import words
from .models import EMPTY_META, LEXICAL_REVISION
from .tasks import texts_of
from .word_weights import bm25_weights, tfidf_weights


QUERIES_AT_ONCE = 16
DOCUMENTS_AT_ONCE = 50_000


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
        self._ids = [str(each) for each in corpus["id"][:]]  # at once: one by one takes eighty times as long
        self._counter = CountVectorizer(analyzer=words, dtype=np.float64)
        counts = self._counter.fit_transform(_texts_of_corpus(corpus, task_metadata))
        weights, self._query_weights = (bm25_weights if self.kind == "bm25" else tfidf_weights)(counts)
        self._documents_of_words = weights.T.tocsr()  # [V, D]

    def search(
        self, queries: Any, *, task_metadata: TaskMetadata, top_k: int, top_ranked: Any = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """The documents that share the most telling words with each query. A document that shares none is not a
        result, unless it is one of the candidates to be scored."""
        texts = texts_of(queries, task_metadata, mteb.types.PromptType.query)
        counts = self._counter.transform(texts) @ diags(self._query_weights)
        place = {} if top_ranked is None else {key: index for index, key in enumerate(self._ids)}
        results = {}
        for start in range(0, len(texts), QUERIES_AT_ONCE):
            scores = counts[start : start + QUERIES_AT_ONCE] @ self._documents_of_words  # sparse [q, D]
            scores.sort_indices()
            for query, row in zip(queries["id"][start : start + QUERIES_AT_ONCE], scores, strict=True):
                if top_ranked is None:
                    shares_words = row.data != 0
                    documents, similarities = row.indices[shares_words], row.data[shares_words]
                else:
                    documents = np.array([place[key] for key in top_ranked.get(query, ())], dtype=int)
                    similarities = row.toarray()[0, documents]
                best = np.argsort(-similarities, kind="stable")[:top_k]
                results[str(query)] = {self._ids[documents[each]]: float(similarities[each]) for each in best}
        return results


def _texts_of_corpus(corpus: Dataset, task_metadata: TaskMetadata) -> Iterator[str]:
    """The texts, of which a window is in memory at a time."""
    for start in range(0, len(corpus), DOCUMENTS_AT_ONCE):
        window = corpus.select(range(start, min(start + DOCUMENTS_AT_ONCE, len(corpus))))
        yield from texts_of(window, task_metadata, mteb.types.PromptType.document)
