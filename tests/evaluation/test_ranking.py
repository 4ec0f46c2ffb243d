"""Rankings block by block are those of a stable sort of all similarities, whatever is equal and however it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.rows import Row, Task
from llamafactory_embed.evaluation import in_training, ranking
from llamafactory_embed.evaluation.in_training import evaluate_retrieval, rank_documents
from llamafactory_embed.evaluation.ranking import BestDocuments, join_rankings
from tests.embedders import PROSE, make_embedder
from tests.ranks import Ranks
from tests.tiny_models import tiny_tokenizer


def sorted_whole(queries: Tensor, documents: Tensor, depth: int) -> Tensor:
    return (queries @ documents.T).sort(dim=1, descending=True, stable=True).indices[:, :depth]


def vectors_of(kind: str, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    queries = torch.randint(-2, 3, (11, 3), generator=generator).float()  # whole numbers: exact, and often equal
    documents = torch.randint(-2, 3, (count, 3), generator=generator).float()
    if kind == "alike":
        return torch.ones(11, 3), torch.ones(count, 3)
    if kind == "ascending":
        return torch.ones(11, 3), documents.sort(dim=0).values
    if kind == "close":
        return queries, documents / 4096  # still exact
    if kind == "no numbers":
        queries[0], documents[::4] = torch.nan, torch.nan
    return queries, documents


@pytest.mark.parametrize("kind", ["often equal", "alike", "ascending", "close", "no numbers"])
@pytest.mark.parametrize(("block", "depth"), [(1, 1), (7, 3), (7, 10), (64, 100), (8192, 10)])
def test_blocks_give_the_ranking_of_a_stable_sort(
    kind: str, block: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "DOCUMENTS_AT_ONCE", block)
    monkeypatch.setattr(ranking, "QUERIES_AT_ONCE", 4)
    for count in (1, 5, 30, 100):
        queries, documents = vectors_of(kind, count)
        assert torch.equal(rank_documents(queries, documents, depth), sorted_whole(queries, documents, depth))


def test_equal_documents_are_equally_similar_in_whatever_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block is one document, whose products a library would sum in another way."""
    monkeypatch.setattr(ranking, "DOCUMENTS_AT_ONCE", 8)
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(50, 333, generator=generator), torch.randn(25, 333, generator=generator)
    documents[24] = documents[3]
    for order in rank_documents(queries, documents, 25).tolist():
        assert order.index(24) == order.index(3) + 1


@pytest.mark.parametrize("ranks", [1, 3, 40])
def test_rankings_of_parts_are_joined_to_that_of_the_whole(ranks: int) -> None:
    queries, documents = vectors_of("often equal", 30)
    parts = []
    for rank in range(ranks):
        best = BestDocuments(queries, 10)
        best.add(documents[rank::ranks], torch.arange(30)[rank::ranks])
        parts.append(best.ranking)
    scores, places = join_rankings(parts, 10)
    assert torch.equal(places, sorted_whole(queries, documents, 10))
    assert torch.equal(scores, (queries @ documents.T).gather(1, places))


def test_no_matrix_of_all_documents_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "DOCUMENTS_AT_ONCE", 50)
    largest = 0
    with_block = BestDocuments._with_block

    def measured(self: BestDocuments, best: ranking.Ranking, scores: Tensor, numbers: Tensor) -> ranking.Ranking:
        nonlocal largest
        found = with_block(self, best, scores, numbers)
        largest = max(largest, scores.shape[1], found[0].shape[1])
        return found

    monkeypatch.setattr(BestDocuments, "_with_block", measured)
    rank_documents(*vectors_of("often equal", 2000), depth=20)
    assert largest == 50


def test_windows_of_documents_change_no_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are a whole number of the Encoder's own, so each text meets the same neighbours."""
    encoder = Encoder(make_embedder(), tiny_tokenizer())
    lines = [line for line in dict.fromkeys(PROSE) if line.strip()]
    task = build_retrieval_eval(Task("prose", [Row(a, (b,)) for a, b in itertools.pairwise(lines)]))
    monkeypatch.setattr("llamafactory_embed.encoder.encoder.WINDOW", 2)
    at_once = evaluate_retrieval(encoder, [task], share_over_ranks=False)
    calls: list[int] = []
    encode = encoder.encode

    def counted(texts: list[str], **how: object) -> Tensor:
        calls.append(len(texts))
        return encode(texts, **how)

    monkeypatch.setattr(encoder, "encode", counted)
    monkeypatch.setattr(in_training, "DOCUMENTS_AT_ONCE", 4)
    assert evaluate_retrieval(encoder, [task], share_over_ranks=False) == at_once
    assert calls[0] == len(task.queries)
    assert max(calls[1:]) == 4
    assert sum(calls[1:]) == len(task.corpus)


class Embedder:
    """What evaluation asks of an Encoder; a text's vector is the same whatever is beside it."""

    config = SimpleNamespace(normalize=True, compares_unit_length=False)
    dimension = 16  # a bit counts 1/4, so that products of whole numbers are exact

    def encode(self, texts: Sequence[str], **how: object) -> Tensor:
        generators = [torch.Generator().manual_seed(len(text) % 7) for text in texts]
        vectors = [torch.randint(-2, 3, (16,), generator=generator).float() for generator in generators]
        return torch.stack(vectors) if vectors else torch.empty(0, 16)

    def ranges_for(self, *about: object) -> None:
        """Bits need none."""


@pytest.mark.parametrize("count", [2, 3, 12])
def test_all_ranks_get_the_metrics_of_one_process(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are fewer documents than ranks; many documents have equal vectors."""
    lines = [line for line in dict.fromkeys(PROSE) if line.strip()]
    task = build_retrieval_eval(Task("prose", [Row(a, (b,)) for a, b in itertools.pairwise(lines)]))
    encoder: Any = Embedder()
    monkeypatch.setattr(in_training, "DEPTH", 4)
    monkeypatch.setattr(in_training, "DOCUMENTS_AT_ONCE", 2)
    alone = evaluate_retrieval(encoder, [task], share_over_ranks=False, precision="binary")
    ranks = Ranks(count, monkeypatch)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    shared = ranks.run(lambda _: evaluate_retrieval(encoder, [task], share_over_ranks=True, precision="binary"))
    assert shared == [alone] * count
    assert ranks.collectives[0].count("all_gather_object") == 2, "one for the queries, one for the rankings"
    assert 0 < alone["ndcg@10"] < 1
