"""The benchmark of mining searches what it says, and compares what is equal. Nothing is timed here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mining


pytest.importorskip("faiss")

SETTINGS = mining.Settings(passages=3000, queries=50, dimension=32, depth=20, topics=30, memory_mb=1, chunk=700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    mining.write_vectors(SETTINGS, folder)
    for index in SETTINGS.indexes:
        run = mining.run({"settings": dataclasses.asdict(SETTINGS), "folder": str(folder), "index": index})
        assert run["seconds"] > 0
        assert run["shards"] > 0
    return folder


def read(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{kind}-*.npy"))])


def test_flat_finds_the_nearest(folder: Path) -> None:
    queries, passages = read(folder, "queries"), read(folder, "passages")
    assert passages.shape == (SETTINGS.passages, SETTINGS.dimension)
    nearest = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, : SETTINGS.depth]
    np.testing.assert_array_equal(np.load(folder / "flat.npy"), nearest)


def test_recall_is_the_share_of_the_nearest(folder: Path, tmp_path: Path) -> None:
    assert mining.recall(folder, "flat") == 1.0
    assert mining.recall(folder, "ivf") > 0.9
    assert mining.recall(folder, "hnsw") > 0.9
    exact = np.load(folder / "flat.npy")
    np.save(tmp_path / "flat.npy", exact)
    half = exact.copy()
    half[:, ::2] = -1
    np.save(tmp_path / "half.npy", half)
    assert mining.recall(tmp_path, "half") == pytest.approx(0.5)
