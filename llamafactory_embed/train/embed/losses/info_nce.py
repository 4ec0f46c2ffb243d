"""InfoNCE: find the query's positive among all positives and negatives of the batch.

van den Oord et al. 2018; with in-batch and hard negatives as in Karpukhin et al. 2020 (DPR), LLM2Vec and tDRO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import Reduction, Similarity, reduce_rows, similarity_matrix


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    similarity: Similarity = "cosine",
    targets: Tensor | None = None,
    negative_owners: Tensor | None = None,
    own_passages_only: Tensor | None = None,
    duplicates: Tensor | None = None,
    false_negative_margin: float | None = None,
    both_directions: bool = False,
    all_queries: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy of softmax(similarity / temperature) against each query's positive.

    Shapes: queries [B, d]; positives [P, d] and negatives [N, d] of the whole batch, of all ranks if there are more
    (gathered with their gradients by the caller). Candidates are the positives, then the negatives; their order does
    not matter to the result.

    - `targets` [B]: the positive of each query; by default query i has positive i.
    - `negative_owners` [N]: the positive beside which each negative stands in its row; by default the same number of
      negatives for each positive, one after the other. Only read where own negatives are treated differently:
    - `own_passages_only` [B], bool: these queries see their own positive and negatives only. tDRO does this for
      classification and clustering, where another row's passage is often as right as the own one.
    - `duplicates` [B, P + N], bool: candidates whose text is that of the query's positive; always left out.
    - `false_negative_margin` m: a candidate of another row is left out if its similarity exceeds the positive's by
      more than m (similarities before the temperature). Own hard negatives stay: they were chosen to be hard.
    - `both_directions`: the mean of this and of finding the query of each positive, among `all_queries` [P, d], of
      which number j belongs to positive j; by default the given queries.

    The own positive is never left out.
    """
    if targets is None:
        targets = torch.arange(len(queries), device=queries.device)
    candidates = positives if negatives is None else torch.cat([positives, negatives])
    similarities = similarity_matrix(queries, candidates, similarity)  # [B, P + N]

    left_out = torch.zeros_like(similarities, dtype=torch.bool)
    if own_passages_only is not None or false_negative_margin is not None:
        owners = candidate_owners(len(positives), len(candidates), negative_owners, queries.device)  # [P + N]
        foreign = owners != targets.unsqueeze(1)  # [B, P + N]
        if false_negative_margin is not None:
            left_out |= foreign & exceeds_target(similarities, targets, false_negative_margin)
        if own_passages_only is not None:
            left_out |= foreign & own_passages_only.unsqueeze(1)
    if duplicates is not None:
        left_out |= duplicates
    losses = cross_entropy_without(similarities / temperature, targets, left_out)  # [B]

    if both_directions:
        if all_queries is None:
            all_queries = queries
            own_query = torch.arange(len(queries), device=queries.device)
            same_positive = None if duplicates is None else duplicates[:, targets]  # [B, B]
        else:
            own_query = targets
            same_positive = None if duplicates is None else duplicates[:, : len(positives)]  # [B, P]
        backward = info_nce(
            positives[targets],
            all_queries,
            temperature=temperature,
            similarity=similarity,
            targets=own_query,
            duplicates=same_positive,
            false_negative_margin=false_negative_margin,
            reduction="none",
        )
        averaged = (losses + backward) / 2
        # Other rows' queries are no negatives for a row whose other rows' passages are none.
        losses = averaged if own_passages_only is None else torch.where(own_passages_only, losses, averaged)
    return reduce_rows(losses, reduction)


def candidate_owners(
    num_positives: int, num_candidates: int, negative_owners: Tensor | None, device: torch.device
) -> Tensor:
    """The positive beside which each candidate stands, [P + N]."""
    own = torch.arange(num_positives, device=device)
    if negative_owners is None:
        negatives_each, rest = divmod(num_candidates - num_positives, num_positives)
        if rest:
            raise ValueError(
                f"{num_candidates - num_positives} negatives cannot be shared out to {num_positives} positives: "
                "say which belongs to which in `negative_owners`."
            )
        negative_owners = own.repeat_interleave(negatives_each)
    return torch.cat([own, negative_owners])


def exceeds_target(similarities: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Which candidates are more similar to the query than its positive by more than the margin, [B, N]."""
    similarities = similarities.detach()
    return similarities > similarities.gather(1, targets.unsqueeze(1)) + margin


def cross_entropy_without(scores: Tensor, targets: Tensor, left_out: Tensor) -> Tensor:
    """Cross entropy of each row [B, N] over the candidates that are not left out; the target never is."""
    left_out = left_out.scatter(1, targets.unsqueeze(1), False)
    return F.cross_entropy(scores.masked_fill(left_out, -torch.inf), targets, reduction="none")
