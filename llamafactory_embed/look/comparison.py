"""Two models on the same texts: rankings, scores, neighbours, a map."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..data.retrieval.evalset import RetrievalEval
from ..encoder.encoder import Encoder, Role
from ..evaluation.in_training import DEPTH, rank_documents, retrieval_metrics


Projection = Literal["PCA", "UMAP"]


@dataclass(frozen=True)
class EmbeddedTask:
    """A task's queries [Q, d] and documents [D, d], whose inner products are the model's similarities."""

    task: RetrievalEval
    queries: Tensor
    documents: Tensor

    def ranking(self, query: int, depth: int) -> list[RankedText]:
        """The documents that are most similar to a query, best first."""
        (places,) = rank_documents(self.queries[query : query + 1], self.documents, depth).tolist()
        scores = self.documents @ self.queries[query]  # [D]
        answers = self.task.relevant[query]
        return [RankedText(self.task.corpus[place], float(scores[place]), place in answers) for place in places]

    def metrics(self) -> dict[str, float]:
        """nDCG, MRR and recall over the queries that have an answer; nothing where none has."""
        judged = [query for query, answers in enumerate(self.task.relevant) if answers]
        if not judged:
            return {}
        ranking = rank_documents(self.queries[judged], self.documents, DEPTH)
        return retrieval_metrics(ranking, [self.task.relevant[query] for query in judged])

    def pairs(self, most: int) -> tuple[list[int], list[int]]:
        """Queries and a document for each, in the same order: its answer, or where there is none the next document."""
        queries = list(range(min(most, len(self.task.queries))))
        answers = [min(self.task.relevant[query], default=query % len(self.task.corpus)) for query in queries]
        return queries, list(dict.fromkeys(answers))


@dataclass(frozen=True)
class RankedText:
    """A document in a ranking."""

    text: str
    score: float
    is_answer: bool


@dataclass(frozen=True)
class Side:
    """One of the two models, and what it made of the texts."""

    name: str
    encoder: Encoder
    tasks: tuple[EmbeddedTask, ...]

    def neighbours(self, text: str, count: int) -> list[RankedText]:
        """The queries and documents of all tasks that are nearest to a text; it is no neighbour of itself."""
        known: dict[str, Tensor] = {}
        for each in self.tasks:
            for texts, vectors in ((each.task.corpus, each.documents), (each.task.queries, each.queries)):
                known |= dict(zip(texts, vectors, strict=True))
        known.pop(text, None)
        others = list(known)
        vectors = torch.stack(list(known.values()))  # [N, d]
        (vector,) = embed_texts(self.encoder, [text], "", "document")
        scores = vectors @ vector
        (places,) = rank_documents(vector.unsqueeze(0), vectors, count).tolist()
        return [RankedText(others[place], float(scores[place]), False) for place in places]


def look_at(name: str, encoder: Encoder, tasks: Sequence[RetrievalEval]) -> Side:
    """Embed the texts of tasks."""
    return Side(name, encoder, tuple(_embed_task(encoder, task) for task in tasks))


def _embed_task(encoder: Encoder, task: RetrievalEval) -> EmbeddedTask:
    return EmbeddedTask(
        task,
        embed_texts(encoder, task.queries, list(task.query_instructions), "query"),
        embed_texts(encoder, task.corpus, task.corpus_instruction, "document"),
    )


def embed_texts(encoder: Encoder, texts: Sequence[str], prompt: str | list[str], role: Role) -> Tensor:
    """Embeddings [N, d] whose inner products are the model's similarities."""
    normalize = encoder.config.compares_unit_length
    vectors: Tensor = encoder.encode(texts, prompt=prompt, role=role, normalize=normalize, convert_to="torch")
    return vectors


def has_umap() -> bool:
    """Whether the package umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def project(vectors: Tensor, method: Projection) -> Tensor:
    """Places on a map, [N, d] → [N, 2]."""
    if method == "UMAP":
        from umap import UMAP  # type: ignore[import-not-found, unused-ignore]

        neighbours = min(15, len(vectors) - 1)
        return torch.from_numpy(
            UMAP(n_components=2, n_neighbors=neighbours, random_state=0).fit_transform(vectors.numpy())
        )
    return principal_components(vectors)


def principal_components(vectors: Tensor) -> Tensor:
    """Coordinates along the two directions of the largest variance, [N, d] → [N, 2]. A direction points to where its
    largest number is positive, so that equal texts give equal maps."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)  # [min(N, d), d]
    directions = directions[:2]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    places = centred @ (directions * largest.sign()).T
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))  # a single text has no direction
