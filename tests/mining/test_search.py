"""Searching in shards, with every index, within a given memory, and on GPUs where FAISS has some."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed.mining import search
from llamafactory_embed.mining.search import HIT, IndexSettings, merge, merge_shards, search_shard, shard_bounds
from llamafactory_embed.mining.vectors import ChunkedVectors, map_array
from tests.patience import PATIENCE
from tests.two_ranks import REPOSITORY

from .helpers import on_disk


faiss = pytest.importorskip("faiss")

DEPTH = 12


def make_vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> ChunkedVectors:
    return on_disk(make_vectors(30, seed=1), tmp_path_factory.mktemp("vectors"), "queries")


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> ChunkedVectors:
    """In files whose edges are not those of the shards."""
    return on_disk(make_vectors(500), tmp_path_factory.mktemp("vectors"), "passages", chunk=64)


@pytest.fixture(scope="module")
def exact(queries: ChunkedVectors) -> np.ndarray:
    """The ranking found by looking at everything."""
    return np.argsort(-(queries.read(0, 30) @ make_vectors(500).T), axis=1, kind="stable")[:, :DEPTH]


def test_vectors_in_files_are_one_array(passages: ChunkedVectors) -> None:
    whole = make_vectors(500)
    assert len(passages) == 500
    np.testing.assert_array_equal(passages.read(60, 300), whole[60:300])
    np.testing.assert_array_equal(passages.gather([499, 0, 64, 63, 64]), whole[[499, 0, 64, 63, 64]])


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings("flat"),
        IndexSettings("ivf", ivf_lists=7, ivf_probes=7),
        IndexSettings("ivf", ivf_probes=10_000),
        IndexSettings("hnsw", hnsw_search=500),
        IndexSettings("flat", precision="int8", rescore_multiplier=500),
        IndexSettings("flat", precision="binary", rescore_multiplier=500),
    ],
    ids=["flat", "ivf-all-of-7-cells", "ivf-all-cells", "hnsw-all-candidates", "bytes-all-ranked", "bits-all-ranked"],
)
@pytest.mark.parametrize("edges", [[0, 500], [0, 5, 171, 400, 500]], ids=["whole", "shards"])
def test_an_index_that_looks_everywhere_is_exact(
    settings: IndexSettings, edges: list[int], queries: ChunkedVectors, passages: ChunkedVectors, exact: np.ndarray
) -> None:
    parts = [
        search_shard(queries, passages, start, stop, DEPTH, settings) for start, stop in itertools.pairwise(edges)
    ]
    found = merge(parts, DEPTH)
    np.testing.assert_array_equal(found["passage"], exact)
    scores = np.take_along_axis(queries.read(0, 30) @ make_vectors(500).T, exact, axis=1)
    np.testing.assert_allclose(found["score"], scores, atol=1e-6)


def test_an_index_that_looks_less_far_finds_less(
    queries: ChunkedVectors, passages: ChunkedVectors, exact: np.ndarray
) -> None:
    for settings in (
        IndexSettings("ivf", ivf_lists=40, ivf_probes=2),
        IndexSettings("hnsw", hnsw_links=4, hnsw_search=8),
        IndexSettings("flat", precision="binary", rescore_multiplier=2),
    ):
        found = search_shard(queries, passages, 0, 500, DEPTH, settings)["passage"]
        recall = np.mean([len(set(a) & set(b)) / DEPTH for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
        assert 0.1 < recall < 0.98, settings.kind


def test_bytes_find_nearly_all_and_score_exactly(
    queries: ChunkedVectors, passages: ChunkedVectors, exact: np.ndarray
) -> None:
    found = search_shard(queries, passages, 0, 500, DEPTH, IndexSettings(precision="int8", rescore_multiplier=2))
    np.testing.assert_array_equal(found["passage"], exact)
    scores = np.take_along_axis(queries.read(0, 30) @ make_vectors(500).T, exact, axis=1)
    np.testing.assert_allclose(found["score"], scores, atol=1e-6)


def test_smaller_vectors_make_larger_shards() -> None:
    rows = {
        precision: IndexSettings(memory_mb=64, precision=precision).rows_per_shard(512)  # type: ignore[arg-type]
        for precision in ("float32", "int8", "binary")
    }
    assert rows["int8"] == pytest.approx(rows["float32"] * 4 / 2.25, rel=0.01)
    assert rows["binary"] == pytest.approx(rows["float32"] * 32 / 2.25, rel=0.01)


def test_equal_scores_stand_in_the_order_of_the_passages(tmp_path: Path) -> None:
    passages = on_disk(np.ones((9, 4)), tmp_path, "passages")
    parts = [search_shard(passages, passages, *bounds, 6, IndexSettings()) for bounds in ((0, 4), (4, 9))]
    assert merge(parts[::-1], 6)["passage"].tolist() == [[0, 1, 2, 3, 4, 5]] * 9


def test_missing_places_are_last(queries: ChunkedVectors, tmp_path: Path) -> None:
    few = on_disk(make_vectors(3), tmp_path, "few")
    found = search_shard(queries, few, 0, 3, 5, IndexSettings("ivf", ivf_lists=3, ivf_probes=1))
    assert (found["passage"][:, -2:] == -1).all()
    assert np.isneginf(found["score"][:, -2:]).all()
    assert (found["passage"][:, 0] >= 0).all()


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_shards_are_as_large_as_the_memory_allows(kind: Any) -> None:
    settings = IndexSettings(kind, memory_mb=8)
    bounds = shard_bounds(100_000, 384, settings)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 100_000
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) * 384 * 4 <= 8 * 2**20
    assert max(sizes) - min(sizes) <= 1
    most = shard_bounds(5_000_001, 4, IndexSettings(kind, memory_mb=10**6))
    assert len(most) == 6, "however large the memory, five million passages are work for five processes"
    twice = shard_bounds(100_000, 384, IndexSettings(kind, memory_mb=16))
    assert len(twice) == pytest.approx(len(bounds) / 2, abs=1)


def test_a_corpus_of_many_chunks_needs_few_file_descriptors(tmp_path: Path) -> None:
    vectors = make_vectors(40)
    before = len(list(Path("/proc/self/fd").iterdir()))
    passages = on_disk(vectors, tmp_path, "passages", chunk=2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    np.testing.assert_array_equal(passages.read(3, 31), vectors[3:31])
    np.testing.assert_array_equal(passages.gather([39, 0, 7]), vectors[[39, 0, 7]])


@pytest.mark.parametrize("order", ["C", "F"])
def test_mapped_arrays_are_those_of_numpy(order: Any, tmp_path: Path) -> None:
    hits = np.zeros((3, 5), dtype=HIT, order=order)
    hits["passage"] = np.arange(15).reshape(3, 5)
    for array in (hits, np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.float32)):
        np.save(tmp_path / "array.npy", array)
        mapped = map_array(tmp_path / "array.npy")
        np.testing.assert_array_equal(mapped, array)
        assert mapped.dtype == array.dtype


def test_shards_are_merged_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shards = []
    for number in range(7):
        hits = np.empty((9, 4), dtype=HIT)
        hits["score"] = rng.integers(0, 5, size=hits.shape)  # often equal
        hits["passage"] = rng.permutation(np.arange(36)).reshape(hits.shape) + 36 * number
        hits[:, 3:] = (-np.inf, -1) if number == 2 else hits[:, 3:]
        shards.append(merge([hits], 4))
    at_once = merge([shard[2:8] for shard in shards], 6)
    for count in (1, 3, 16):
        monkeypatch.setattr(search, "SHARDS_AT_ONCE", count)
        np.testing.assert_array_equal(merge_shards(shards, 2, 8, 6), at_once)


MEMORY_OF_KINDS = {"flat": 16, "ivf": 64, "hnsw": 16}
ALLOWED = {"all": 1.0, "too-little": 0.3}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How searches within so much memory ended, and what they said."""
    folder = tmp_path_factory.mktemp("limited")
    cases: dict[str, dict[str, Any]] = {}
    for kind, memory in MEMORY_OF_KINDS.items():
        file = folder / f"{kind}.npy"  # three times as many vectors as the memory would hold
        vectors = np.lib.format.open_memmap(file, "w+", np.float32, (3 * memory * 1024, 256))
        for number in range(3 * memory):
            vectors[number * 1024 : (number + 1) * 1024] = make_vectors(1024, 256, number)
        vectors.flush()
        for name, allowed in ALLOWED.items():
            arguments = {"file": str(file), "kind": kind, "memory": memory, "allowed": allowed}
            cases[f"{kind}-{name}"] = {"function": "search_in_shards", **arguments}
    np.save(folder / "many.npy", make_vectors(40_000, 8))
    for name, hits in {"disk": str(folder / "hits.npy"), "memory": None}.items():
        arguments = {"file": str(folder / "many.npy"), "memory": 16, "hits_file": hits}
        cases[f"many-{name}"] = {"function": "search_for_many", **arguments}
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    command = [sys.executable, "-m", "tests.mining.limited", str(folder)]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=PATIENCE)
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in cases}


def test_many_queries_stay_within_the_memory(limited: dict[str, tuple[int, str]]) -> None:
    """What 40,000 queries find takes 46 MiB, and 16 are allowed."""
    code, said = limited["many-disk"]
    assert code == 0, said
    assert limited["many-memory"][0] != 0, "the limit is felt"


@pytest.mark.parametrize("kind", MEMORY_OF_KINDS)
def test_a_search_stays_within_its_memory(kind: str, limited: dict[str, tuple[int, str]]) -> None:
    """The system refuses more than the flag allows, for three times as many vectors as that would hold."""
    code, said = limited[f"{kind}-all"]
    assert code == 0, said
    assert int(said) > 3
    assert limited[f"{kind}-too-little"][0] != 0, "the limit is felt"


def test_gpus_are_used_where_faiss_has_some(
    monkeypatch: pytest.MonkeyPatch, queries: ChunkedVectors, passages: ChunkedVectors, exact: np.ndarray
) -> None:
    moved: list[Any] = []

    def move(index: Any) -> Any:
        moved.append(type(index).__name__)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", move, raising=False)
    for settings in (IndexSettings("flat"), IndexSettings("ivf", ivf_lists=5, ivf_probes=5), IndexSettings("hnsw")):
        search_shard(queries, passages, 0, 500, DEPTH, settings)
    assert moved == ["IndexFlatIP", "IndexIVFFlat"]
    found = search_shard(queries, passages, 0, 500, DEPTH, IndexSettings("flat", device="gpu"))
    np.testing.assert_array_equal(found["passage"], exact)
    moved.clear()
    search_shard(queries, passages, 0, 500, DEPTH, IndexSettings("flat", device="cpu"))
    assert moved == []


def test_a_gpu_that_is_not_there(queries: ChunkedVectors, passages: ChunkedVectors) -> None:
    if faiss.get_num_gpus():
        pytest.skip("this FAISS sees GPUs")
    with pytest.raises(ValueError, match=r"`index_device: gpu`: this FAISS sees no GPU"):
        search_shard(queries, passages, 0, 500, DEPTH, IndexSettings("flat", device="gpu"))
