"""The nearest vectors by inner product with FAISS (Douze et al. 2024), in shards that fit into a given memory."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from typing import Literal, Protocol

import numpy as np

from ..model.quantization import quantize
from .vectors import ChunkedVectors


MIB = 2**20
LARGEST_QUERY_BLOCK = 4096
LARGEST_SHARD = 1_000_000  # passages, so that a large corpus is work for several processes
SHARDS_AT_ONCE = 16  # whose hits are merged in memory
BYTE_RANGE_CELLS = 1024  # times the next: passages by which FAISS measures the ranges of bytes
IVF_TRAINING_VECTORS = 64  # a cell, enough for k-means
HIT = np.dtype([("score", np.float32), ("passage", np.int64)])
NO_HIT = np.array((-np.inf, -1), dtype=HIT)  # where there are fewer passages than places


@dataclass(frozen=True)
class IndexSettings:
    """Which index, and how exactly it searches."""

    kind: Literal["flat", "ivf", "hnsw"] = "flat"
    _: KW_ONLY
    ivf_lists: int | None = None
    ivf_probes: int = 32
    hnsw_links: int = 32
    hnsw_search: int = 128
    device: Literal["auto", "cpu", "gpu"] = "auto"
    memory_mb: int = 4096
    precision: Literal["float32", "int8", "binary"] = "float32"
    """How a flat index holds vectors."""
    rescore_multiplier: int = 4

    def rows_per_shard(self, dimension: int) -> int:
        """How many passages a shard may have: five eighths of the memory are for the index, one eighth for queries and
        their hits, the rest for FAISS."""
        bytes_per_vector = {
            "flat": self._bytes_in_flat_index(dimension),
            "ivf": int(4 * dimension * 2.25) + 16,  # lists grow by doubling; their training sample is gone
            "hnsw": 8 * dimension + 8 * self.hnsw_links + 64,  # the vectors while they are handed over, and links
        }[self.kind]
        return max(1, min(LARGEST_SHARD, self.memory_mb * MIB * 5 // 8 // bytes_per_vector))

    def query_block(self, dimension: int, depth: int) -> int:
        """How many queries are searched at a time."""
        found = depth if self.precision == "float32" else depth * self.rescore_multiplier
        bytes_per_query = 4 * dimension + 64 * found
        return max(1, min(LARGEST_QUERY_BLOCK, self.memory_mb * MIB // 8 // bytes_per_query))

    def _bytes_in_flat_index(self, dimension: int) -> int:
        whole = {"float32": 4 * dimension, "int8": dimension, "binary": (dimension + 7) // 8}[self.precision]
        return whole if self.precision == "float32" else int(whole * 2.25)  # codes grow by doubling


class Index(Protocol):
    """The part of a FAISS index that mining uses."""

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions [Q, depth], best first; position -1 where there is none."""


def import_faiss() -> ModuleType:
    """FAISS, or one sentence that says where to get it."""
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
    hits: np.ndarray | None = None,
) -> np.ndarray:
    """The nearest of the passages [start, stop) to every query: [Q, depth] of `HIT`, best first.

    `hits` is the array to write to: one on disk where there are many queries.
    """
    if hits is None:
        hits = np.empty((len(queries), depth), dtype=HIT)
    index = build_index(passages, start, stop, settings)
    block = settings.query_block(queries.dimension, depth)
    for first in range(0, len(queries), block):
        part = queries.read(first, min(first + block, len(queries)))
        scores, positions = index.search(part, min(depth, stop - start))
        here = np.empty(scores.shape, dtype=HIT)
        here["score"] = np.where(positions < 0, NO_HIT["score"], scores)
        here["passage"] = np.where(positions < 0, NO_HIT["passage"], positions + start)
        hits[first : first + len(part)] = merge([here], depth)
    return hits


def merge(parts: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """The best of several searches [Q, ·] of `HIT` → [Q, depth]; equal scores stand in the order of the passages."""
    hits = np.concatenate(parts, axis=1)
    order = np.lexsort((hits["passage"], -hits["score"]), axis=1)[:, :depth]
    best = np.take_along_axis(hits, order, axis=1)
    if best.shape[1] < depth:
        missing = np.full((len(best), depth - best.shape[1]), NO_HIT, dtype=HIT)
        best = np.concatenate([best, missing], axis=1)
    return best


def merge_shards(shards: Sequence[np.ndarray], start: int, stop: int, depth: int) -> np.ndarray:
    """`merge` of the queries [start, stop) of all shards, of which a few are in memory at a time."""
    best = np.empty((stop - start, 0), dtype=HIT)
    for first in range(0, len(shards), SHARDS_AT_ONCE):
        part = [shard[start:stop] for shard in shards[first : first + SHARDS_AT_ONCE]]
        best = merge([best, *part], depth)
    return best


def build_index(passages: ChunkedVectors, start: int, stop: int, settings: IndexSettings) -> Index:
    """An index of the passages [start, stop), on all GPUs where there are some."""
    faiss = import_faiss()
    on_gpu = _use_gpus(faiss, settings)
    dimension, count = passages.dimension, stop - start
    if settings.precision != "float32":
        return _Rescored(faiss, passages, start, stop, settings)
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


def _use_gpus(faiss: ModuleType, settings: IndexSettings) -> bool:
    if settings.device == "cpu" or settings.kind == "hnsw" or settings.precision != "float32":
        return False
    gpus = faiss.get_num_gpus()
    if settings.device == "gpu" and not gpus:
        raise ValueError("`index_device: gpu`: this FAISS sees no GPU; install faiss-gpu, or use `index_device: cpu`.")
    return bool(gpus)


def _training_sample(passages: ChunkedVectors, start: int, stop: int, lists: int) -> np.ndarray:
    """Vectors spread evenly over the passages."""
    count = stop - start
    size = min(IVF_TRAINING_VECTORS * lists, count)
    return passages.gather(start + np.arange(size) * count // size)


class _FlatOnCpu:
    """Exact search in an array, without the second copy that an index would make."""

    def __init__(self, faiss: ModuleType, vectors: np.ndarray) -> None:
        self._faiss = faiss
        self._vectors = vectors

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Index`."""
        return self._faiss.knn(queries, self._vectors, depth, metric=self._faiss.METRIC_INNER_PRODUCT)


class _Rescored:
    """Finds by bytes or bits several times as many passages as are asked for, and ranks these by the vectors on disk:
    scores are those of an exact search."""

    def __init__(
        self, faiss: ModuleType, passages: ChunkedVectors, start: int, stop: int, settings: IndexSettings
    ) -> None:
        self._passages, self._start, self._count = passages, start, stop - start
        self._multiplier = settings.rescore_multiplier
        self._in_bits = settings.precision == "binary"
        dimension = passages.dimension
        if self._in_bits:
            self._index = faiss.IndexBinaryFlat((dimension + 7) // 8 * 8)
        else:
            kind = faiss.ScalarQuantizer.QT_8bit
            self._index = faiss.IndexScalarQuantizer(dimension, kind, faiss.METRIC_INNER_PRODUCT)
            self._index.train(_training_sample(passages, start, stop, BYTE_RANGE_CELLS))
        for piece in passages.parts(start, stop):
            self._index.add(self._packed(piece))

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Index`."""
        _, positions = self._index.search(self._packed(queries), min(depth * self._multiplier, self._count))
        scores = np.full(positions.shape, -np.inf, dtype=np.float32)
        for row, (query, found) in enumerate(zip(queries, positions, strict=True)):
            is_found = found >= 0
            scores[row, is_found] = self._passages.gather(self._start + found[is_found]) @ query
        order = np.lexsort((positions, -scores), axis=1)[:, :depth]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def _packed(self, vectors: np.ndarray) -> np.ndarray:
        return quantize(vectors, "ubinary") if self._in_bits else vectors
