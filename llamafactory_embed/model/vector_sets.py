"""Texts of several vectors, and how they are compared: MaxSim (Khattab and Zaharia 2020, ColBERT).

The vectors of all texts lie end to end, as their tokens do in the packed forward: there is no padding and no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .packed import Lengths, PackedBatch, fill_empty_texts, fill_rows, lengths_tensor, pooled_dtype


MOST_PRODUCTS = 2**24  # inner products of vectors that are held at a time


@dataclass(frozen=True)
class VectorSets:
    """The vectors of N texts, at least one each."""

    vectors: Tensor  # [V, d], text after text
    counts: tuple[int, ...]  # how many each text has

    @classmethod
    def of(cls, texts: Sequence[Tensor]) -> VectorSets:
        """Texts with their vectors [n, d] each."""
        return cls(torch.cat(list(texts)), tuple(len(each) for each in texts))

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    def texts(self) -> Sequence[Tensor]:
        """The vectors [n, d] of each text."""
        return self.vectors.split(list(self.counts))

    def pick(self, places: Sequence[int]) -> VectorSets:
        """Some of the texts, in that order."""
        texts = self.texts()
        return VectorSets.of([texts[place] for place in places])

    def split(self, size: int) -> list[VectorSets]:
        """`size` texts at a time."""
        return self._cut([min(start + size, len(self)) for start in range(0, len(self), size)])

    def portions(self, most: int) -> list[VectorSets]:
        """As many texts at a time as have `most` vectors, or one that has more."""
        rows = fill_rows([range(count) for count in self.counts], range(len(self)), most)
        return self._cut([row[-1] + 1 for row in rows])

    def _cut(self, ends: Sequence[int]) -> list[VectorSets]:
        counts = [self.counts[first:end] for first, end in itertools.pairwise([0, *ends])]
        parts = self.vectors.split([sum(each) for each in counts])
        return [VectorSets(*each) for each in zip(parts, counts, strict=True)]


Texts: TypeAlias = Tensor | VectorSets
"""Embeddings of N texts: a vector each, [N, d], or several."""


def compare(anchors: Texts, candidates: Texts) -> Tensor:
    """All pairs [N, M]: inner products, or MaxSim of queries and documents."""
    if isinstance(anchors, VectorSets) and isinstance(candidates, VectorSets):
        return max_sim(anchors, candidates)
    assert isinstance(anchors, Tensor)
    assert isinstance(candidates, Tensor)
    with torch.autocast(device_type=anchors.device.type, enabled=False):
        return anchors @ candidates.T


def max_sim(queries: VectorSets, documents: VectorSets) -> Tensor:
    """For every query and document the mean over the query's vectors of the largest inner product with one of the
    document's, [Q, D].

    ColBERT takes the sum. The mean ranks documents alike, and stays among the cosines whatever a query's length.
    """
    parts = documents.portions(max(1, MOST_PRODUCTS // len(queries.vectors)))
    return torch.cat([_max_sim_at_once(queries, part) for part in parts], dim=1)


def _max_sim_at_once(queries: VectorSets, documents: VectorSets) -> Tensor:
    device = queries.device
    with torch.autocast(device_type=device.type, enabled=False):
        products = documents.vectors @ queries.vectors.T  # [vectors of documents, vectors of queries]
    sizes = lengths_tensor(documents.counts, device)
    best = torch.segment_reduce(products, "max", lengths=sizes, unsafe=True)  # [D, vectors of queries]
    sizes = lengths_tensor(queries.counts, device)
    return torch.segment_reduce(best.T.contiguous(), "mean", lengths=sizes, unsafe=True)


# --------------------------------------------------------------------------------------------------------------------
# From hidden states to sets of vectors
# --------------------------------------------------------------------------------------------------------------------


def counting_states(hidden: Tensor, lengths: Lengths, pooled_tokens: Tensor | None = None) -> Tensor:
    """The states that a pooling would average, [T, d] → [V, d]; of a text none of whose tokens counts, all."""
    states = hidden.to(pooled_dtype(hidden))
    if pooled_tokens is None:
        return states
    sizes = lengths_tensor(lengths, hidden.device)
    return states[fill_empty_texts(pooled_tokens.to(hidden.device), sizes)]


def count_vectors(batch: PackedBatch) -> tuple[int, ...]:
    """How many states `counting_states` keeps of each text of a batch, in the batch's order."""
    if batch.pooled_tokens is None:
        return batch.lengths
    texts = batch.pooled_tokens.split(list(batch.lengths))
    return tuple(int(text.sum()) or length for text, length in zip(texts, batch.lengths, strict=True))


def vectors_of_texts(batches: Sequence[PackedBatch]) -> tuple[int, ...]:
    """The same for all texts of some batches, in the order in which the texts were given to `pack_texts`."""
    counts = [count for batch in batches for count in count_vectors(batch)]
    order = [index for batch in batches for index in batch.text_indices]
    return tuple(count for _, count in sorted(zip(order, counts, strict=True)))
