"""The most similar documents of a corpus whose vectors are on disk, exactly or through a FAISS index.

Documents may be stored in another precision. Bytes are compared with the float queries. Bits are found by bits, and
several times as many as are asked for; of these the best are ranked by the float queries (rescoring).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hparams.embedding import Precision
from ..hparams.suggestion import suggest
from ..model.quantization import quantize, rounded


EXACT = "exact"
VECTORS_AT_ONCE = 16384  # read from disk
QUERIES_AT_ONCE = 1024
MOST_TRAINING_VECTORS = 262144  # of a FAISS index that is trained


def ranks_by_bits(precision: Precision) -> bool:
    """Whether documents in this precision are found by their signs."""
    return precision in ("binary", "ubinary")


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
    _: KW_ONLY
    precision: Precision = "float32"
    stored_unit_length: bool = True
    """Whether vectors have unit length when they are stored in that precision."""
    ranges: np.ndarray | None = None
    """The ends [2, dimension] between which int8 counts."""
    rescore_multiplier: int = 1
    """Of documents in bits, how many times as many are found by bits as are then ranked by the float query; 0: bits
    alone rank."""

    @property
    def is_bits(self) -> bool:
        """Whether documents are found by their signs."""
        return ranks_by_bits(self.precision)

    @property
    def size(self) -> int:
        """The number of documents."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0

    def read(self, parts: slice | np.ndarray) -> Tensor:
        """Vectors of some parts [p, dimension], as they are compared: as they come back from how they are stored."""
        vectors = self.vectors[self.rows[parts]]
        if self.precision == "float32":
            return as_searched(vectors, self.dimension, self.unit_length)
        written = as_searched(vectors, self.dimension, self.stored_unit_length)
        read = as_stored(written, self.precision, self.ranges)
        return torch.nn.functional.normalize(read, dim=-1) if self.unit_length else read

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


def as_stored(vectors: Tensor, precision: Precision, ranges: np.ndarray | None = None) -> Tensor:
    """Vectors [n, d] as they come back from a precision."""
    return vectors if precision == "float32" else torch.from_numpy(rounded(vectors.numpy(), precision, ranges))


def best_of_parts(scores: Tensor, owners: Tensor, documents: int) -> Tensor:
    """A document is as similar as the most similar of its parts: [Q, P] → [Q, documents]."""
    if scores.shape[1] == documents:
        return scores
    best = scores.new_full((scores.shape[0], documents), -torch.inf)
    return best.scatter_reduce(1, owners.expand_as(scores), scores, "amax")


def search_exactly(queries: Tensor, corpus: Corpus, depth: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scores and documents of the `depth` best for each query, [Q, min(depth, documents)] each, best first."""
    if not corpus.is_bits:
        scores, _, places = _search_blocks(queries, None, corpus, depth, device)
        return scores, places
    bits = as_stored(queries, corpus.precision)
    if corpus.rescore_multiplier == 0:
        scores, _, places = _search_blocks(bits, None, corpus, depth, device)
        return scores, places
    _, scores, places = _search_blocks(bits, queries, corpus, depth * corpus.rescore_multiplier, device)
    return _first(depth, scores, places)


def _search_blocks(
    queries: Tensor, rescoring: Tensor | None, corpus: Corpus, depth: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The best documents by `queries`: their scores, those by the queries `rescoring`, and themselves."""
    parts = queries.split(QUERIES_AT_ONCE)
    others = parts if rescoring is None else rescoring.split(QUERIES_AT_ONCE)
    best = [
        (torch.empty(len(part), 0), torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.long))
        for part in parts
    ]
    for block in corpus.blocks():
        vectors = corpus.read(block).to(device)
        first = int(corpus.owners[block.start])
        owners = torch.from_numpy(corpus.owners[block] - first).to(device)
        documents = int(owners[-1]) + 1
        for number, (part, other) in enumerate(zip(parts, others, strict=True)):
            scores = best_of_parts(part.to(device) @ vectors.T, owners, documents)
            new, places = scores.topk(min(depth, documents), dim=1)
            second = new
            if rescoring is not None:
                second = best_of_parts(other.to(device) @ vectors.T, owners, documents).gather(1, places)
            found = (new.cpu(), second.cpu(), places.cpu() + first)
            scores, second, places = (torch.cat(pair, dim=1) for pair in zip(best[number], found, strict=True))
            best[number] = _first(depth, scores, second, places)
    scores, second, places = (torch.cat(parts) for parts in zip(*best, strict=True))
    return scores, second, places


def _first(depth: int, scores: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """The `depth` best by `scores` [Q, n], best first, and what belongs to them."""
    kept = scores.topk(min(depth, scores.shape[1]), dim=1)
    return kept.values, *(each.gather(1, kept.indices) for each in more)


def search_with_faiss(queries: Tensor, corpus: Corpus, depth: int, spec: str) -> tuple[Tensor, Tensor]:
    """The same through a FAISS index, built block by block; approximate unless the index is flat."""
    index = make_faiss_index(spec, corpus.dimension, corpus.is_bits)
    pack = _pack if corpus.is_bits else Tensor.numpy
    if not index.is_trained:
        count = min(len(corpus.rows), MOST_TRAINING_VECTORS)
        sample = np.sort(np.random.default_rng(0).choice(len(corpus.rows), count, replace=False))
        try:
            index.train(pack(corpus.read(sample)))
        except RuntimeError as error:
            raise ValueError(
                f"`index: {spec}` cannot be trained on {count} vectors ({faiss_reason(error)}): use a smaller one, or "
                "`exact`."
            ) from error
    for block in corpus.blocks():
        index.add(pack(corpus.read(block)))

    most_parts = int(np.bincount(corpus.owners).max())
    wanted = depth * most_parts * max(1, corpus.rescore_multiplier if corpus.is_bits else 1)
    scores, parts = index.search(pack(queries), min(wanted, len(corpus.rows)))
    if corpus.is_bits:
        scores, parts = rank_found_by_bits(queries, corpus, scores, parts)
    places = torch.from_numpy(np.where(parts >= 0, corpus.owners[parts], -1))
    if most_parts == 1:
        return torch.from_numpy(scores[:, :depth]), places[:, :depth]
    return keep_best_parts(torch.from_numpy(scores), places, depth)


def _pack(vectors: Tensor) -> np.ndarray:
    """Signs as bits, eight a byte."""
    return quantize(vectors.numpy(), "ubinary")


def rank_found_by_bits(
    queries: Tensor, corpus: Corpus, differing: np.ndarray, parts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parts that a search by bits has found [Q, n], with scores, best first: those of the float queries, or of the
    numbers of differing bits [Q, n] where these alone rank. A part of -1, where none was found, comes last."""
    if corpus.rescore_multiplier == 0:
        scores = (1 - 2 * differing / corpus.dimension).astype(np.float32)
    else:
        found = (corpus.read(row.clip(min=0)) @ query for query, row in zip(queries, parts, strict=True))
        scores = np.stack([row.numpy() for row in found])
    scores = np.where(parts >= 0, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(parts, order, axis=1)


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


def make_faiss_index(spec: str, dimension: int, of_bits: bool = False) -> Any:
    """An index from a FAISS factory string, with inner products, or the one of that kind for bits."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"`index: {spec}` needs FAISS: pip install 'llamafactory-embed[eval]'.") from error
    try:
        if of_bits:
            return faiss.index_binary_factory((dimension + 7) // 8 * 8, f"B{spec.removesuffix(',Flat')}")
        return faiss.index_factory(dimension, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"`index: {spec}` is neither {EXACT} nor an index that FAISS can make ({faiss_reason(error)})"
            f"{suggest(spec, (EXACT,))}"
        ) from error


def faiss_reason(error: RuntimeError) -> str:
    """The sentence at the end of a FAISS error."""
    return str(error).rsplit(": ", 1)[-1].strip().rstrip(".")
