"""Search over vectors on disk against plain matrix products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llamafactory_embed.evaluation import search
from llamafactory_embed.evaluation.search import Corpus, make_faiss_index, search_exactly, search_with_faiss


SIZE, CUT = 12, 8


def make_corpus(folder: Path, documents: int, most_parts: int, unit_length: bool = True) -> Corpus:
    """Documents of one to `most_parts` parts whose vectors lie in no order."""
    draw = np.random.default_rng(documents + most_parts)
    owners = np.repeat(np.arange(documents), draw.integers(1, most_parts + 1, documents))
    rows = draw.permutation(len(owners))
    vectors = np.lib.format.open_memmap(folder / "v.npy", mode="w+", dtype=np.float32, shape=(len(owners), SIZE))
    vectors[:] = draw.normal(size=vectors.shape)
    return Corpus(vectors, rows, owners, CUT, unit_length)


def rank_slowly(queries: torch.Tensor, corpus: Corpus, depth: int) -> list[list[tuple[int, float]]]:
    ranking = []
    for query in queries:
        best: dict[int, float] = {}
        for row, owner in zip(corpus.rows, corpus.owners, strict=True):
            vector = torch.from_numpy(np.array(corpus.vectors[row][:CUT]))
            vector = vector / vector.norm() if corpus.unit_length else vector
            best[int(owner)] = max(best.get(int(owner), -1e9), float(vector @ query))
        ranking.append(sorted(best.items(), key=lambda pair: -pair[1])[:depth])
    return ranking


def make_queries(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, CUT, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.mark.parametrize("most_parts", [1, 4])
@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("depth", [3, 100])
def test_blocks_find_what_one_product_finds(
    most_parts: int, unit_length: bool, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "VECTORS_AT_ONCE", 7)
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 4)
    corpus, queries = make_corpus(tmp_path, 40, most_parts, unit_length), make_queries(11)
    scores, places = search_exactly(queries, corpus, depth, torch.device("cpu"))
    expected = rank_slowly(queries, corpus, depth)
    assert places.tolist() == [[place for place, _ in ranking] for ranking in expected]
    np.testing.assert_allclose(scores, [[score for _, score in ranking] for ranking in expected], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("most_parts", [1, 4])
def test_a_gpu_finds_what_the_cpu_finds(most_parts: int, tmp_path: Path) -> None:
    corpus, queries = make_corpus(tmp_path, 40, most_parts), make_queries(11)
    scores, places = search_exactly(queries, corpus, 20, torch.device("cpu"))
    on_gpu, places_on_gpu = search_exactly(queries, corpus, 20, torch.device("cuda"))
    assert places_on_gpu.tolist() == places.tolist()
    torch.testing.assert_close(on_gpu, scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("most_parts", [1, 4])
def test_a_flat_faiss_index_finds_what_exact_search_finds(most_parts: int, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    corpus, queries, depth = make_corpus(tmp_path, 60, most_parts), make_queries(9), 10
    scores, places = search_with_faiss(queries, corpus, depth, "Flat")
    found = [
        [(place, score) for place, score in zip(*pair, strict=True) if place >= 0]
        for pair in zip(places.tolist(), scores.tolist(), strict=True)
    ]
    expected = rank_slowly(queries, corpus, depth)
    assert [[place for place, _ in ranking] for ranking in found] == [[place for place, _ in r] for r in expected]
    np.testing.assert_allclose(
        [[score for _, score in ranking] for ranking in found], [[s for _, s in r] for r in expected], atol=1e-5
    )


def test_an_index_that_is_trained_finds_most(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    corpus, queries = make_corpus(tmp_path, 500, 1), make_queries(30)
    _, places = search_with_faiss(queries, corpus, 10, "IVF4,Flat")
    expected = rank_slowly(queries, corpus, 10)
    hits = [
        len(set(found) & {place for place, _ in right}) for found, right in zip(places.tolist(), expected, strict=True)
    ]
    assert 0.3 < np.mean(hits) / 10 <= 1


def test_an_index_that_faiss_cannot_make_or_train_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"`index: exat` is neither exact nor .*; did you mean `exact`\?"):
        make_faiss_index("exat", SIZE)
    corpus = make_corpus(tmp_path, 20, 1)
    with pytest.raises(ValueError, match="`index: IVF64,Flat` cannot be trained on 20 vectors"):
        search_with_faiss(make_queries(2), corpus, 3, "IVF64,Flat")
