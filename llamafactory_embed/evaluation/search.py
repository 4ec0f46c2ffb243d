"""The most similar documents of a corpus whose vectors are on disk, exactly or through a FAISS index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hparams.suggestion import suggest


EXACT = "exact"
VECTORS_AT_ONCE = 16384  # read from disk
QUERIES_AT_ONCE = 1024
MOST_TRAINING_VECTORS = 262144  # of a FAISS index that is trained


@dataclass
class Corpus:
    """Where the vectors of each document are: one for each, or one for each of its parts."""

    vectors: np.ndarray
    """[n, d], memory-mapped; cut to `dimension` and brought to unit length when they are read."""
    rows: np.ndarray
    """The row of each part in `vectors`, [P]."""
    owners: np.ndarray
    """The document of each part, [P], ascending."""
    dimension: int
    unit_length: bool

    @property
    def size(self) -> int:
        """The number of documents."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0

    def read(self, parts: slice | np.ndarray) -> Tensor:
        """Vectors of some parts [p, dimension], as they are compared."""
        return as_searched(self.vectors[self.rows[parts]], self.dimension, self.unit_length)

    def blocks(self) -> Iterator[slice]:
        """Slices of the parts that hold whole documents."""
        start = 0
        while start < len(self.rows):
            end = min(start + VECTORS_AT_ONCE, len(self.rows))
            end = int(np.searchsorted(self.owners, self.owners[end - 1], side="right"))
            yield slice(start, end)
            start = end


def as_searched(vectors: np.ndarray, dimension: int, unit_length: bool) -> Tensor:
    """Vectors as they are compared: cut (Matryoshka), then of unit length."""
    cut = torch.from_numpy(np.array(vectors[:, :dimension], dtype=np.float32))
    return torch.nn.functional.normalize(cut, dim=-1) if unit_length else cut


def best_of_parts(scores: Tensor, owners: Tensor, documents: int) -> Tensor:
    """A document is as similar as the most similar of its parts: [Q, P] → [Q, documents]."""
    if scores.shape[1] == documents:
        return scores
    best = scores.new_full((scores.shape[0], documents), -torch.inf)
    return best.scatter_reduce(1, owners.expand_as(scores), scores, "amax")


def search_exactly(queries: Tensor, corpus: Corpus, depth: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scores and documents of the `depth` best for each query, [Q, min(depth, documents)] each, best first."""
    best: list[tuple[Tensor, Tensor]] = [
        (torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.long))
        for part in queries.split(QUERIES_AT_ONCE)
    ]
    for block in corpus.blocks():
        vectors = corpus.read(block).to(device)
        first = int(corpus.owners[block.start])
        owners = torch.from_numpy(corpus.owners[block] - first).to(device)
        documents = int(owners[-1]) + 1
        for number, part in enumerate(queries.split(QUERIES_AT_ONCE)):
            scores = best_of_parts(part.to(device) @ vectors.T, owners, documents)
            new, places = scores.topk(min(depth, documents), dim=1)
            scores = torch.cat([best[number][0], new.cpu()], dim=1)
            places = torch.cat([best[number][1], places.cpu() + first], dim=1)
            kept = scores.topk(min(depth, scores.shape[1]), dim=1)
            best[number] = kept.values, places.gather(1, kept.indices)
    return torch.cat([scores for scores, _ in best]), torch.cat([places for _, places in best])


def search_with_faiss(queries: Tensor, corpus: Corpus, depth: int, spec: str) -> tuple[Tensor, Tensor]:
    """The same through a FAISS index, built block by block; approximate unless the index is flat."""
    index = make_faiss_index(spec, corpus.dimension)
    if not index.is_trained:
        count = min(len(corpus.rows), MOST_TRAINING_VECTORS)
        sample = np.sort(np.random.default_rng(0).choice(len(corpus.rows), count, replace=False))
        try:
            index.train(corpus.read(sample).numpy())
        except RuntimeError as error:
            raise ValueError(
                f"`index: {spec}` cannot be trained on {count} vectors ({faiss_reason(error)}): use a smaller one, or "
                "`exact`."
            ) from error
    for block in corpus.blocks():
        index.add(corpus.read(block).numpy())

    most_parts = int(np.bincount(corpus.owners).max())
    scores, parts = index.search(queries.numpy(), min(depth * most_parts, len(corpus.rows)))
    places = torch.from_numpy(np.where(parts >= 0, corpus.owners[parts], -1))
    if most_parts == 1:
        return torch.from_numpy(scores), places
    return keep_best_parts(torch.from_numpy(scores), places, depth)


def keep_best_parts(scores: Tensor, places: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """From parts, best first, to documents: the first part of each is kept, the others become -1."""
    for row in places:
        seen: set[int] = set()
        for column, document in enumerate(row.tolist()):
            if document in seen or len(seen) == depth:
                row[column] = -1
            elif document >= 0:
                seen.add(document)
    return scores, places


def make_faiss_index(spec: str, dimension: int) -> Any:
    """An index from a FAISS factory string, with inner products."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"`index: {spec}` needs FAISS: pip install 'llamafactory-embed[eval]'.") from error
    try:
        return faiss.index_factory(dimension, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"`index: {spec}` is neither {EXACT} nor an index that FAISS can make ({faiss_reason(error)})"
            f"{suggest(spec, (EXACT,))}"
        ) from error


def faiss_reason(error: RuntimeError) -> str:
    """The sentence at the end of a FAISS error."""
    return str(error).rsplit(": ", 1)[-1].strip().rstrip(".")
