"""Ranking metrics against their definitions, written out by hand, and the similarity that they rank by."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.rows import Row, Task
from llamafactory_embed.evaluation import in_training
from llamafactory_embed.evaluation.in_training import evaluate_retrieval, rank_documents, retrieval_metrics
from tests.embedders import PROSE, make_embedder
from tests.tiny_models import tiny_tokenizer


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
def test_metrics_follow_their_definitions(documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_embed.evaluation.ranking.QUERIES_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(documents)
    queries = torch.randn(25, 6, generator=generator)
    corpus = torch.randn(documents, 6, generator=generator)
    relevant = [frozenset(torch.randperm(documents, generator=generator)[: 1 + n % 4].tolist()) for n in range(25)]

    ranking = rank_documents(queries, corpus, depth=100)
    metrics = retrieval_metrics(ranking, relevant)
    orders = [sorted(range(documents), key=lambda d, q=q: -float(queries[q] @ corpus[d])) for q in range(25)]
    slow = [slow_metrics(order, answers) for order, answers in zip(orders, relevant, strict=True)]
    for name in metrics:
        assert metrics[name] == pytest.approx(sum(each[name] for each in slow) / len(slow), abs=1e-9)


def test_a_model_that_embeds_everything_alike_gains_nothing_by_order() -> None:
    ranking = rank_documents(torch.ones(1, 3), torch.ones(20, 3), depth=20)
    assert ranking[0].tolist() == list(range(20))


@pytest.mark.parametrize("depth", [1, 3, 5, 50])
def test_equal_similarities_keep_the_order_of_the_corpus(depth: int) -> None:
    queries = torch.eye(3)
    documents = torch.tensor([[0.5, 1, 0], [1, 1, 0], [0.5, 1, 0], [1, 1, 1], [0.5, 1, 0], [0.5, 1, 1]])
    expected = [[1, 3, 0, 2, 4, 5], [0, 1, 2, 3, 4, 5], [3, 5, 0, 1, 2, 4]]
    ranking = rank_documents(queries, documents, depth)
    assert ranking.tolist() == [order[:depth] for order in expected]


def test_a_model_that_has_diverged_is_ranked_as_well() -> None:
    assert rank_documents(torch.full((2, 3), torch.nan), torch.ones(20, 3), depth=5).shape == (2, 5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("normalize", [True, False])
def test_documents_are_ranked_by_the_similarity_that_is_trained(similarity: str, normalize: bool) -> None:
    """Cosine whether embeddings are served at unit length or not; else the inner product of what is served."""
    model = make_embedder(normalize_embeddings=normalize, similarity=similarity)
    model.decoder.norm.weight.data.mul_(torch.linspace(0.1, 3, model.config.hidden_size))  # lengths far from equal
    encoder = Encoder(model, tiny_tokenizer())
    lines = [line for line in dict.fromkeys(PROSE) if line.strip()]
    task = build_retrieval_eval(Task("prose", [Row(a, (b,)) for a, b in itertools.pairwise(lines)]))
    queries = encoder.encode(task.queries, prompt=list(task.query_instructions), role="query")
    documents = encoder.encode(task.corpus, role="document")

    def metrics(queries: np.ndarray, documents: np.ndarray) -> dict[str, float]:
        ranking = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :100]
        return retrieval_metrics(torch.from_numpy(ranking.copy()), task.relevant)

    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, documents)]
    by_cosine, as_served = metrics(*unit), metrics(queries, documents)
    assert normalize or by_cosine != as_served
    expected = by_cosine if similarity == "cosine" else as_served
    assert evaluate_retrieval(encoder, [task], share_over_ranks=False) == pytest.approx(expected)

    bits = np.where(documents > 0, 1, -1) / documents.shape[1] ** 0.5
    stored = metrics(unit[0], bits) if similarity == "cosine" else metrics(queries, bits)
    assert stored != expected
    expected |= {f"binary_{name}": value for name, value in stored.items()}
    assert evaluate_retrieval(encoder, [task], share_over_ranks=False, precision="binary") == pytest.approx(expected)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_ranks_exchange_embeddings_through_main_memory(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two ranks is played: it embeds every other text like the first. NCCL's own group is refused."""
    made: list[str] = []

    def new_group(backend: str) -> str:
        made.append(backend)
        return f"group of {backend}"

    def all_gather_object(parts: list[object], part: torch.Tensor, group: str | None = None) -> None:
        assert (group or f"group of {backend}") == "group of gloo"
        parts[:] = [part, part]

    monkeypatch.setattr(in_training.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(in_training.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(in_training.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(in_training.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(in_training.dist, "new_group", new_group)
    monkeypatch.setattr(in_training.dist, "destroy_process_group", made.append)
    monkeypatch.setattr(in_training.dist, "all_gather_object", all_gather_object)
    encoder = Encoder(make_embedder(), tiny_tokenizer())
    rows = [Row(query=line, positives=(after,)) for line, after in itertools.pairwise(PROSE[:5])]
    task = Task("prose", rows)
    metrics = evaluate_retrieval(encoder, [build_retrieval_eval(task)], share_over_ranks=True)
    assert set(metrics) == {"ndcg@10", "mrr@10", "recall@10", "recall@100"}
    assert made == ([] if backend == "gloo" else ["gloo", "group of gloo"] * 2), (
        "a group for queries, one for documents"
    )
