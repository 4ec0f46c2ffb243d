"""What a loss gets, embedded rows, and how their texts are compared: always in full precision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gather import gather


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


def rows_of_all_ranks(rows: EmbeddedRows) -> EmbeddedRows:
    """The texts of all ranks' rows, in rank order, without scores, which some rank may not have. Gradients flow back
    to the rank that embedded a text."""
    passage_ids = None if rows.passage_ids is None else gather(rows.passage_ids)
    guide = None if rows.guide is None else rows_of_all_ranks(rows.guide)
    return EmbeddedRows(gather(rows.queries), gather(rows.passages), passage_ids, guide=guide)


def similarity_matrix(queries: Tensor, candidates: Tensor, similarity: Similarity) -> Tensor:
    """Every query [B, d] against every candidate [N, d] → [B, N]."""
    queries, candidates = for_similarity(queries, similarity), for_similarity(candidates, similarity)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return queries @ candidates.T


def own_similarities(queries: Tensor, passages: Tensor, similarity: Similarity) -> Tensor:
    """Each query [B, d] against its own passages [B, K, d] → [B, K]."""
    queries, passages = for_similarity(queries, similarity), for_similarity(passages, similarity)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return (passages @ queries.unsqueeze(-1)).squeeze(-1)


def for_similarity(embeddings: Tensor, similarity: Similarity) -> Tensor:
    """Embeddings in float32 at least, of unit length for cosines: bfloat16 has 3 digits, and similarities are divided
    by temperatures as small as 0.002."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    return F.normalize(embeddings, dim=-1) if similarity == "cosine" else embeddings
