"""Ranking metrics against their definitions, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from llamafactory_embed.evaluation.retrieval_metrics import rank_documents, retrieval_metrics


def slow_metrics(order: list[int], answers: frozenset[int]) -> dict[str, float]:
    gain = sum(1 / math.log2(place + 2) for place, document in enumerate(order[:10]) if document in answers)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(10, len(answers))))
    first = next((place for place, document in enumerate(order[:10]) if document in answers), None)
    return {
        "ndcg@10": gain / ideal,
        "mrr@10": 0.0 if first is None else 1 / (first + 1),
        "recall@10": len(answers & set(order[:10])) / len(answers),
        "recall@100": len(answers & set(order[:100])) / len(answers),
    }


@pytest.mark.parametrize("documents", [4, 30, 250])
def test_metrics_follow_their_definitions(documents: int) -> None:
    generator = torch.Generator().manual_seed(documents)
    queries = torch.randn(25, 6, generator=generator)
    corpus = torch.randn(documents, 6, generator=generator)
    relevant = [frozenset(torch.randperm(documents, generator=generator)[: 1 + n % 4].tolist()) for n in range(25)]

    ranking = rank_documents(queries, corpus, depth=100, block=7)
    found = retrieval_metrics(ranking, relevant)
    orders = [sorted(range(documents), key=lambda d, q=q: -float(queries[q] @ corpus[d])) for q in range(25)]
    slow = [slow_metrics(order, answers) for order, answers in zip(orders, relevant, strict=True)]
    for name in found:
        assert found[name] == pytest.approx(sum(each[name] for each in slow) / len(slow), abs=1e-9)


def test_a_model_that_embeds_everything_alike_gains_nothing_by_order() -> None:
    ranking = rank_documents(torch.ones(1, 3), torch.ones(20, 3), depth=20)
    assert ranking[0].tolist() == list(range(20))
