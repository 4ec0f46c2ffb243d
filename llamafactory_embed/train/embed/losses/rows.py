"""What a loss gets, embedded rows, and how their texts are compared: always in full precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ....model.vector_sets import Texts, VectorSets, max_sim
from ..gather import gather, gather_sets


Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True)
class EmbeddedRows:
    """The embeddings of B rows: each has a query and 1 + K passages, its positive and then its K negatives."""

    queries: Tensor  # [B, d]
    passages: Tensor  # [B, 1 + K, d]
    passage_ids: Tensor | None = None  # [B, 1 + K], equal for equal texts; None: all texts differ
    scores: Tensor | None = None  # [B, 1 + K] of a teacher, or [B, 1] of scored pairs
    own_passages_only: Tensor | None = None  # [B] bool, rows that are never compared with others; None: no row
    first_row: int = 0  # the number of the first row among those of all ranks
    teacher_vectors: Tensor | None = None  # [B, T, d'] of the query and of the first T - 1 passages
    guide: EmbeddedRows | None = None  # the same texts as a guide embeds them

    def prefix(self, size: int) -> EmbeddedRows:
        """The same rows with embeddings cut to their first numbers."""
        return dataclasses.replace(self, queries=self.queries[..., :size], passages=self.passages[..., :size])

    @property
    def size(self) -> int:
        """Of an embedding."""
        return self.queries.shape[-1]

    @property
    def passages_each(self) -> int:
        """1 + K."""
        return self.passages.shape[1]

    @property
    def positives(self) -> Tensor:
        """[B, d]."""
        return self.passages[:, 0]

    @property
    def all_passages(self) -> Tensor:
        """[B * (1 + K), d], row by row."""
        return self.passages.flatten(0, 1)

    def own_similarities(self, similarity: Similarity, most: int | None = None) -> Tensor:
        """Each query against its own passages, or the first `most` of them, [B, 1 + K]."""
        return own_similarities(self.queries, self.passages[:, :most], similarity)

    def of_all_ranks(self) -> EmbeddedRows:
        """The texts of all ranks' rows, in rank order, without scores, which some rank may not have. Gradients flow
        back to the rank that embedded a text."""
        passage_ids = None if self.passage_ids is None else gather(self.passage_ids)
        guide = None if self.guide is None else self.guide.of_all_ranks()
        return EmbeddedRows(gather(self.queries), gather(self.passages), passage_ids, guide=guide)


@dataclass(frozen=True)
class SetRows:
    """The same rows where texts have several vectors, which are compared by MaxSim."""

    queries: VectorSets  # of B texts
    passages: VectorSets  # of B * (1 + K) texts, row by row
    passage_ids: Tensor | None = None
    scores: Tensor | None = None
    own_passages_only: Tensor | None = None
    first_row: int = 0
    guide: EmbeddedRows | None = None

    def prefix(self, size: int) -> SetRows:
        """The same rows with vectors cut to their first numbers."""
        queries, passages = (VectorSets(each.vectors[:, :size], each.counts) for each in (self.queries, self.passages))
        return dataclasses.replace(self, queries=queries, passages=passages)

    @property
    def size(self) -> int:
        """Of a vector."""
        return self.queries.vectors.shape[-1]

    @property
    def passages_each(self) -> int:
        """1 + K."""
        return len(self.passages) // len(self.queries)

    @property
    def positives(self) -> VectorSets:
        """Of B texts."""
        return self.passages.pick(range(0, len(self.passages), self.passages_each))

    @property
    def all_passages(self) -> VectorSets:
        """Of B * (1 + K) texts, row by row."""
        return self.passages

    def own_similarities(self, similarity: Similarity, most: int | None = None) -> Tensor:
        """Each query against its own passages, or the first `most` of them, [B, 1 + K]."""
        queries, passages = (
            sets_for_similarity(self.queries, similarity),
            sets_for_similarity(self.passages, similarity),
        )
        first = range(self.passages_each)[:most]
        rows = zip(queries.split(1), passages.split(self.passages_each), strict=True)
        return torch.cat([max_sim(query, own.pick(first)) for query, own in rows])

    def of_all_ranks(self) -> SetRows:
        """As `EmbeddedRows.of_all_ranks`."""
        passage_ids = None if self.passage_ids is None else gather(self.passage_ids)
        guide = None if self.guide is None else self.guide.of_all_ranks()
        return SetRows(gather_sets(self.queries), gather_sets(self.passages), passage_ids, guide=guide)


AnyRows = EmbeddedRows | SetRows


def own_similarities(queries: Tensor, passages: Tensor, similarity: Similarity) -> Tensor:
    """Each query [B, d] against its own passages [B, K, d] → [B, K]."""
    queries, passages = for_similarity(queries, similarity), for_similarity(passages, similarity)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return (passages @ queries.unsqueeze(-1)).squeeze(-1)


def texts_for_similarity(texts: Texts, similarity: Similarity) -> Texts:
    """`for_similarity` of texts with one vector or several."""
    return (
        sets_for_similarity(texts, similarity) if isinstance(texts, VectorSets) else for_similarity(texts, similarity)
    )


def sets_for_similarity(sets: VectorSets, similarity: Similarity) -> VectorSets:
    """`for_similarity` of every vector."""
    return VectorSets(for_similarity(sets.vectors, similarity), sets.counts)


def for_similarity(embeddings: Tensor, similarity: Similarity) -> Tensor:
    """Embeddings in float32 at least, of unit length for cosines: bfloat16 has 3 digits, and similarities are divided
    by temperatures as small as 0.002."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return F.normalize(embeddings, dim=-1) if similarity == "cosine" else embeddings
