"""Search over vectors on disk against plain matrix products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llamafactory_embed.evaluation import search
from llamafactory_embed.evaluation.search import Corpus, make_faiss_index, search_exactly, search_with_faiss
from llamafactory_embed.hparams.embedding import Precision
from llamafactory_embed.model.quantization import dequantize, quantize


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


def stored_corpus(folder: Path, most_parts: int, precision: Precision, rescore_multiplier: int) -> Corpus:
    corpus = make_corpus(folder, 60, most_parts)
    cut = corpus.vectors[:, :CUT] / np.linalg.norm(corpus.vectors[:, :CUT], axis=1, keepdims=True)
    corpus.ranges = np.stack([cut.min(0), cut.max(0)])
    corpus.precision, corpus.rescore_multiplier = precision, rescore_multiplier
    return corpus


def rank_stored(queries: torch.Tensor, corpus: Corpus, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best scores [Q, depth] and all of them [Q, 60], by products with all documents as they come back."""
    vectors = search.as_searched(corpus.vectors[corpus.rows], CUT, unit_length=True).numpy()
    back = dequantize(quantize(vectors, corpus.precision, corpus.ranges), corpus.precision, CUT, corpus.ranges)
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    scores = queries.numpy() @ back.T
    best = np.stack([[row[corpus.owners == n].max() for n in range(corpus.size)] for row in scores])
    return -np.sort(-best, axis=1)[:, :depth], best


@pytest.mark.parametrize("most_parts", [1, 4])
@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary"])
@pytest.mark.parametrize("index", ["exact", "Flat"])
def test_stored_documents_are_ranked_by_the_float_queries(
    index: str, precision: Precision, most_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits too, where they choose so many that all documents are among them."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(search, "VECTORS_AT_ONCE", 7)
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 4)
    corpus, queries, depth = stored_corpus(tmp_path, most_parts, precision, 1000), make_queries(9), 10
    if index == "exact":
        scores, places = search_exactly(queries, corpus, depth, torch.device("cpu"))
    else:
        scores, places = search_with_faiss(queries, corpus, depth, index)
    best, every = rank_stored(queries, corpus, depth)
    kept = places >= 0
    assert kept.sum(1).tolist() == [depth] * 9
    found = places[kept].view(9, depth)  # documents of the same bits tie
    assert all(len(set(row)) == depth for row in found.tolist())
    np.testing.assert_allclose(scores[kept].view(9, depth), best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every, found.numpy(), axis=1), best, atol=1e-5)


@pytest.mark.parametrize("index", ["exact", "Flat"])
@pytest.mark.parametrize("multiplier", [0, 1, 2])
def test_bits_choose_what_is_ranked(index: str, multiplier: int, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    corpus, queries, depth = stored_corpus(tmp_path, 1, "binary", multiplier), make_queries(9), 10
    if index == "exact":
        scores, places = search_exactly(queries, corpus, depth, torch.device("cpu"))
    else:
        scores, places = search_with_faiss(queries, corpus, depth, index)
    signs = corpus.read(slice(0, 60)).numpy() > 0
    differing = ((queries.numpy() > 0)[:, None] != signs[None]).sum(2)  # [9, 60]
    farthest = np.sort(differing, axis=1)[:, depth * max(multiplier, 1) - 1]
    found = np.take_along_axis(differing, places.numpy(), axis=1)
    assert (found <= farthest[:, None]).all(), "no document is nearer by bits than one of those that were ranked"
    if multiplier == 0:
        np.testing.assert_allclose(scores, 1 - 2 * found / CUT, atol=1e-6)
    else:
        products = queries.numpy() @ corpus.read(slice(0, 60)).numpy().T
        np.testing.assert_allclose(scores, np.take_along_axis(products, places.numpy(), axis=1), atol=1e-6)
    assert (np.diff(scores.numpy(), axis=1) <= 1e-6).all()


def test_rescoring_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    corpus, queries = stored_corpus(tmp_path, 1, "ubinary", 4), make_queries(9)
    codes = quantize(corpus.vectors[corpus.rows][:, :CUT], "ubinary")
    found, _ = theirs.semantic_search_faiss(
        queries.numpy(), codes, corpus_precision="ubinary", top_k=5, rescore_multiplier=1000
    )
    corpus.rescore_multiplier = 1000
    _, places = search_exactly(queries, corpus, 5, torch.device("cpu"))
    products = corpus.read(slice(0, 60)) @ queries.T  # documents of the same bits tie
    for number, row in enumerate(found):
        expected = products[[hit["corpus_id"] for hit in row], number]
        torch.testing.assert_close(products[places[number], number], expected)


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
