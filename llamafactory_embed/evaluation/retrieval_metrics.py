"""nDCG, MRR and recall of a ranking with binary relevance, as trec_eval defines them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_documents(queries: Tensor, documents: Tensor, depth: int, block: int = 256) -> Tensor:
    """The positions of the `depth` most similar documents, best first: [Q, d], [D, d] → [Q, min(depth, D)].

    Equal similarities keep the corpus order, so that a model which embeds everything alike gains nothing by chance.
    """
    rankings = []
    for part in queries.split(block):
        similarities = part @ documents.T  # [block, D]
        order = similarities.sort(dim=1, descending=True, stable=True).indices
        rankings.append(order[:, :depth])
    return torch.cat(rankings)


def retrieval_metrics(
    ranking: Tensor, relevant: Sequence[frozenset[int]], cutoff: int = 10, recall_cutoffs: Sequence[int] = (10, 100)
) -> dict[str, float]:
    """Means over queries: `ndcg@10`, `mrr@10` and `recall@k`. `relevant[i]` are the positions that answer query i."""
    depth = ranking.shape[1]
    hits = torch.zeros(ranking.shape, dtype=torch.float64)  # [Q, depth]
    for query, (order, answers) in enumerate(zip(ranking.tolist(), relevant, strict=True)):
        hits[query] = torch.tensor([float(document in answers) for document in order], dtype=torch.float64)
    totals = torch.tensor([len(answers) for answers in relevant], dtype=torch.float64)

    discounts = 1 / torch.log2(torch.arange(depth, dtype=torch.float64) + 2)
    discounts[cutoff:] = 0
    ideal = torch.stack([discounts[: int(total)].sum() for total in totals])
    top = hits[:, :cutoff]
    first = top.argmax(dim=1)
    reciprocal = torch.where(top.any(dim=1), 1 / (first + 1).double(), torch.zeros(len(top), dtype=torch.float64))
    metrics = {f"ndcg@{cutoff}": float((hits @ discounts / ideal).mean()), f"mrr@{cutoff}": float(reciprocal.mean())}
    for k in recall_cutoffs:
        metrics[f"recall@{k}"] = float((hits[:, :k].sum(dim=1) / totals).mean())
    return metrics
