"""InfoNCE: find the query's positive among all positives and negatives of the batch.

van den Oord et al. 2018; with in-batch and hard negatives as in Karpukhin et al. 2020 (DPR), LLM2Vec and tDRO. With
two views of a text as query and positive it is SimCSE (Gao et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....hparams.contrastive import ComparisonOptions, ContrastiveOptions
from .rows import EmbeddedRows, rows_of_all_ranks, similarity_matrix


def info_nce(rows: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """Cross entropy of softmax(similarity / temperature) against each query's positive, [B]; candidates are the
    passages of all rows, with `cross_device_negatives` those of other ranks too."""
    everyone = rows_of_all_ranks(rows) if options.cross_device_negatives else rows
    return contrast(rows, everyone, options)


def contrast(rows: EmbeddedRows, everyone: EmbeddedRows, options: ContrastiveOptions) -> Tensor:
    """The loss of `rows` [B] among `everyone`, who include them.

    With `both_directions` it is the mean of finding each query's positive and of finding each positive's query; rows
    that see only their own passages also ignore other rows' queries.
    """
    margin = options.false_negative_margin
    losses = find_positives(rows, everyone, options, margin)
    if not options.both_directions:
        return losses

    queries = everyone.queries.unsqueeze(1)  # [P, 1, d]
    ids = None if everyone.passage_ids is None else everyone.passage_ids[:, :1]  # a query is known by its positive
    back = find_own(rows.passages[:, 0], queries, places_among(rows, everyone), options, ids=ids, margin=margin)
    both = (losses + back) / 2
    return both if rows.own_passages_only is None else torch.where(rows.own_passages_only, losses, both)


def find_positives(
    rows: EmbeddedRows, everyone: EmbeddedRows, options: ComparisonOptions, margin: float | None = None
) -> Tensor:
    """Cross entropy of finding each query's positive among the passages of `everyone`, who include `rows` [B], [B]."""
    return find_own(
        rows.queries,
        everyone.passages,
        places_among(rows, everyone),
        options,
        ids=everyone.passage_ids,
        own_only=rows.own_passages_only,
        margin=margin,
    )


def places_among(rows: EmbeddedRows, everyone: EmbeddedRows) -> Tensor:
    """Where the rows are among `everyone`, [B]."""
    return torch.arange(len(rows.queries), device=rows.queries.device) + rows.first_row - everyone.first_row


def find_own(
    anchors: Tensor,
    candidates: Tensor,
    own_row: Tensor,
    options: ComparisonOptions,
    *,
    ids: Tensor | None = None,
    own_only: Tensor | None = None,
    margin: float | None = None,
) -> Tensor:
    """Cross entropy of finding, for each anchor [B, d], the first candidate of its row `own_row` [B] among the
    candidates [P, C, d] of P rows, [B]. Some candidates are left out, never the one to find:

    - those whose text, by their `ids` [P, C], is that of the one to find;
    - all of other rows, for anchors marked in `own_only` [B]. tDRO does this for classification and clustering, where
      another row's passage is often as right as the own one;
    - those of other rows that are more similar than the one to find by more than `margin`, unless it is None. Hard
      negatives of the own row stay: they were chosen to be hard.
    """
    rows, each, _ = candidates.shape
    owners = torch.arange(rows, device=anchors.device).repeat_interleave(each)  # [P * C]
    others = owners != own_row.unsqueeze(1)  # [B, P * C]
    targets = own_row * each  # [B]
    similarities = similarity_matrix(anchors, candidates.flatten(0, 1), options.similarity)  # [B, P * C]

    left_out = torch.zeros_like(others)
    if ids is not None:
        left_out |= ids.flatten() == ids[own_row, :1]
    if own_only is not None:
        left_out |= others & own_only.unsqueeze(1)
    if margin is not None:
        limits = similarities.gather(1, targets.unsqueeze(1)) + margin
        left_out |= others & (similarities > limits)
    left_out = left_out.scatter(1, targets.unsqueeze(1), False)
    scores = (similarities / options.loss_temperature).masked_fill(left_out, -torch.inf)
    return F.cross_entropy(scores, targets, reduction="none")
