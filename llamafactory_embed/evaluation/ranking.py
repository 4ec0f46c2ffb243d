"""The nearest documents of queries, as documents come block by block: no matrix of all queries and all documents.

The order is that of the similarities. Equal ones keep the order of the corpus, so that a model which embeds everything
alike gains nothing by chance; what is no number counts as the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.vector_sets import Texts, VectorSets, compare


QUERIES_AT_ONCE = 256
DOCUMENTS_AT_ONCE = 8192
NOWHERE = torch.iinfo(torch.long).max  # the place of no document, behind those of all

Ranking = tuple[Tensor, Tensor]  # similarities and places [Q, k], best first


class BestDocuments:
    """The `depth` best documents of each query among those that have come so far."""

    def __init__(self, queries: Texts, depth: int) -> None:
        """`queries`, Q of them, whose inner product with a document, or MaxSim, is their similarity."""
        self.depth = depth
        self._largest = 0  # documents of a block
        self._queries = queries.split(QUERIES_AT_ONCE)
        vectors = queries.vectors if isinstance(queries, VectorSets) else queries
        self._best: list[Ranking] = [
            (vectors.new_empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.long, device=vectors.device))
            for part in self._queries
        ]

    @property
    def ranking(self) -> Ranking:
        """Similarities and places, [Q, min(depth, documents so far)] each."""
        scores, places = zip(*self._best, strict=True)
        return torch.cat(scores), torch.cat(places)

    def add(self, documents: Texts, places: Tensor) -> None:
        """The next n documents and their places in the corpus [n], which ascend from call to call."""
        for block, numbers in zip(documents.split(DOCUMENTS_AT_ONCE), places.split(DOCUMENTS_AT_ONCE), strict=True):
            compared = block if isinstance(block, VectorSets) else self._as_large_as_before(block)
            for position, part in enumerate(self._queries):
                scores = compare(part, compared)[:, : len(block)].nan_to_num(torch.inf, torch.inf, -torch.inf)
                self._best[position] = self._with_block(self._best[position], scores, numbers)

    def _as_large_as_before(self, block: Tensor) -> Tensor:
        """A smaller block with zeros behind it: products of other shapes may be summed in another order, and documents
        that are equal would no longer be equally similar."""
        self._largest = max(self._largest, len(block))
        return torch.cat([block, block.new_zeros(self._largest - len(block), block.shape[1])])

    def _with_block(self, best: Ranking, scores: Tensor, numbers: Tensor) -> Ranking:
        """The best so far and the next block's [q, n]. Once `depth` documents are there, few of a block are better
        than the last of them, and only these are sorted."""
        is_full = best[0].shape[1] == self.depth
        chosen = scores > best[0][:, -1:] if is_full else torch.ones_like(scores, dtype=torch.bool)
        if int(chosen.count_nonzero()) > len(scores) * self.depth:
            chosen &= _first_of_block(scores, self.depth)
        rows, columns = chosen.nonzero(as_tuple=True)
        counts = rows.bincount(minlength=len(scores))
        slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        shape = (len(scores), int(counts.max()))
        new_scores = scores.new_full(shape, -torch.inf)
        new_places = numbers.new_full(shape, NOWHERE)
        new_scores[rows, slots] = scores[rows, columns]
        new_places[rows, slots] = numbers[columns]
        depth = min(self.depth, best[0].shape[1] + scores.shape[1])
        return _best_first(torch.cat([best[0], new_scores], 1), torch.cat([best[1], new_places], 1), depth)


def join_rankings(rankings: Sequence[Ranking], depth: int) -> Ranking:
    """The ranking [Q, depth] of a corpus from those of its parts."""
    scores, places = (torch.cat(parts, dim=1) for parts in zip(*rankings, strict=True))
    order = places.argsort(dim=1)
    return _best_first(scores.gather(1, order), places.gather(1, order), depth)


def _first_of_block(scores: Tensor, depth: int) -> Tensor:
    """Whether a similarity [q, n] may be one of the `depth` best of its row; of equal ones the first are enough."""
    most = min(depth, scores.shape[1])
    last = scores.topk(most, dim=1).values[:, -1:]
    chosen = scores >= last
    if int(chosen.count_nonzero()) > len(scores) * most:
        is_equal = scores == last
        chosen &= ~is_equal | (is_equal.cumsum(dim=1) <= most)
    return chosen


def _best_first(scores: Tensor, places: Tensor, depth: int) -> Ranking:
    """The `depth` best of each row; equal ones stay in their order."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :depth], places.gather(1, order)[:, :depth]
