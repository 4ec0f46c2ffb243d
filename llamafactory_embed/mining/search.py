"""Nearest passages by inner product with FAISS (Douze et al. 2024), in shards that fit into a given memory."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .vectors import ChunkedVectors


MIB = 2**20
LARGEST_QUERY_BLOCK = 4096
LARGEST_SHARD = 1_000_000  # passages, so that a large corpus is work for several processes
IVF_TRAINING_VECTORS = 64  # a cell, enough for k-means
FOUND = np.dtype([("score", np.float32), ("passage", np.int64)])
MISSING = np.array((-np.inf, -1), dtype=FOUND)  # where there are fewer passages than places


@dataclass(frozen=True)
class IndexSettings:
    """Which index, and how exactly it searches."""

    kind: Literal["flat", "ivf", "hnsw"] = "flat"
    ivf_lists: int | None = None
    ivf_probes: int = 32
    hnsw_links: int = 32
    hnsw_search: int = 128
    device: Literal["auto", "cpu", "gpu"] = "auto"
    memory_mb: int = 4096

    def rows_per_shard(self, dimension: int) -> int:
        """How many passages a shard may have: five eighths of the memory are the index's, an eighth is for queries
        and what they find, the rest for FAISS."""
        bytes_per_vector = {
            "flat": 4 * dimension,
            "ivf": int(4 * dimension * 2.25) + 16,  # lists grow by doubling; their training sample is gone
            "hnsw": 8 * dimension + 8 * self.hnsw_links + 64,  # the vectors while they are handed over, and links
        }[self.kind]
        return max(1, min(LARGEST_SHARD, self.memory_mb * MIB * 5 // 8 // bytes_per_vector))

    def query_block(self, dimension: int, depth: int) -> int:
        """How many queries are searched at a time."""
        bytes_per_query = 4 * dimension + 64 * depth
        return max(1, min(LARGEST_QUERY_BLOCK, self.memory_mb * MIB // 8 // bytes_per_query))


class Index(Protocol):
    """What is needed of an index of FAISS."""

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions [Q, depth], best first; position -1 where nothing was found."""


def import_faiss() -> Any:
    """FAISS, or one sentence on where to get it."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ValueError(
            "Mining needs FAISS, which the extra `eval` brings: pip install 'llamafactory-embed[eval]'."
        ) from error


def shard_bounds(count: int, dimension: int, settings: IndexSettings) -> list[tuple[int, int]]:
    """The passages [start, stop) of each shard, all of nearly the same size."""
    shards = -(-count // settings.rows_per_shard(dimension))
    edges = [count * number // shards for number in range(shards + 1)]
    return list(itertools.pairwise(edges))


def search_shard(
    queries: ChunkedVectors,
    passages: ChunkedVectors,
    start: int,
    stop: int,
    depth: int,
    settings: IndexSettings,
    found: np.ndarray | None = None,
) -> np.ndarray:
    """What every query finds among the passages [start, stop): [Q, depth] of `FOUND`, best first.

    `found` is where to write it, an array on disk where there are many queries.
    """
    if found is None:
        found = np.empty((len(queries), depth), dtype=FOUND)
    index = build_index(passages, start, stop, settings)
    block = settings.query_block(queries.dimension, depth)
    for first in range(0, len(queries), block):
        part = queries.read(first, min(first + block, len(queries)))
        scores, positions = index.search(part, min(depth, stop - start))
        here = np.empty(scores.shape, dtype=FOUND)
        here["score"] = np.where(positions < 0, MISSING["score"], scores)
        here["passage"] = np.where(positions < 0, MISSING["passage"], positions + start)
        found[first : first + len(part)] = merge([here], depth)
    return found


def merge(parts: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """The best of several searches [Q, ·] of `FOUND` → [Q, depth]; equal scores stand in the order of the passages."""
    found = np.concatenate(parts, axis=1)
    order = np.lexsort((found["passage"], -found["score"]), axis=1)[:, :depth]
    best = np.take_along_axis(found, order, axis=1)
    if best.shape[1] < depth:
        missing = np.full((len(best), depth - best.shape[1]), MISSING, dtype=FOUND)
        best = np.concatenate([best, missing], axis=1)
    return best


def build_index(passages: ChunkedVectors, start: int, stop: int, settings: IndexSettings) -> Index:
    """An index of the passages [start, stop), on all GPUs where there are some."""
    faiss = import_faiss()
    on_gpu = _use_gpus(faiss, settings)
    dimension, count = passages.dimension, stop - start
    if settings.kind == "flat" and not on_gpu:
        return _FlatOnCpu(faiss, passages.read(start, stop))
    if settings.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = settings.hnsw_search
        index.add(passages.read(start, stop))  # at once: the vectors of an index grow by doubling
        return index

    lists = min(settings.ivf_lists or max(1, int(4 * count**0.5)), count)
    if settings.kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(settings.ivf_probes, lists)
        index.cp.min_points_per_centroid = 1  # a small corpus is no reason for a warning
    else:
        index = faiss.IndexFlatIP(dimension)
    if on_gpu:
        index = faiss.index_cpu_to_all_gpus(index)
    if settings.kind == "ivf":
        index.train(_training_sample(passages, start, stop, lists))
    for piece in passages.parts(start, stop):
        index.add(piece)
    return index


def _use_gpus(faiss: Any, settings: IndexSettings) -> bool:
    if settings.device == "cpu" or settings.kind == "hnsw":
        return False
    gpus = faiss.get_num_gpus()
    if settings.device == "gpu" and not gpus:
        raise ValueError("`index_device: gpu`: this FAISS sees no GPU; install faiss-gpu, or use `index_device: cpu`.")
    return bool(gpus)


def _training_sample(passages: ChunkedVectors, start: int, stop: int, lists: int) -> np.ndarray:
    """Vectors at even distances."""
    count = stop - start
    wanted = min(IVF_TRAINING_VECTORS * lists, count)
    return passages.gather(start + np.arange(wanted) * count // wanted)


class _FlatOnCpu:
    """Exact search in an array, without the second copy that an index would make."""

    def __init__(self, faiss: Any, vectors: np.ndarray) -> None:
        self._faiss = faiss
        self._vectors = vectors

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Index`."""
        return self._faiss.knn(queries, self._vectors, depth, metric=self._faiss.METRIC_INNER_PRODUCT)
