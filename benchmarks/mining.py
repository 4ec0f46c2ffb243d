"""Indexing and searching a corpus for hard negatives, beyond embedding it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Variant, take_turns
from .results_file import Result, spread, table_of


TITLE = "Mining: indexing and search"
CASE = "hard negatives"
EXACT = "flat"


@dataclass(frozen=True)
class Settings:
    passages: int = 100_000
    queries: int = 10_000
    dimension: int = 384
    depth: int = 100  # ranks found for each query
    topics: int = 2000  # vectors lie around so many points, as embeddings of texts do
    spread: float = 0.7  # length of the difference from that point
    memory_mb: int = 256
    chunk: int = 8192
    indexes: tuple[str, ...] = (EXACT, "ivf", "hnsw")


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Each index in turns, on the same vectors on disk."""
    import faiss

    write_vectors(settings, folder)
    variants = {
        kind: Variant("benchmarks.mining:run", {"settings": dataclasses.asdict(settings), "folder": str(folder),
                                                "index": kind})
        for kind in settings.indexes
    }  # fmt: skip
    runs = take_turns({CASE: variants}, repeats)
    for run_ in runs:
        run_["recall"] = recall(folder, run_["variant"])
        run_["passages_per_second"] = settings.passages / run_["seconds"]
    return Result(
        settings=dataclasses.asdict(settings) | {"faiss": faiss.__version__},
        runs=runs,
        figures=[
            spread(
                f"{kind}, passages a second",
                [each["passages_per_second"] for each in runs if each["variant"] == kind],
                unit="/s",
                at_least=2000,
            )
            for kind in settings.indexes
        ],
        table=table_of(
            runs,
            {
                "seconds": lambda median: f"{median('seconds'):.1f}",
                "passages/s": lambda median: f"{median('passages_per_second'):.0f}",
                "recall": lambda median: f"{100 * median('recall'):.1f}%",
                "shards": lambda median: f"{median('shards'):.0f}",
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
            },
        ),
    )


def write_vectors(settings: Settings, folder: Path) -> None:
    """Unit vectors around common topics, in files as the mining step of embedding leaves them."""
    import numpy as np

    rng = np.random.default_rng(0)
    topics = rng.normal(size=(settings.topics, settings.dimension)).astype(np.float32)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    for kind, count in (("passages", settings.passages), ("queries", settings.queries)):
        for start in range(0, count, settings.chunk):
            rows = min(settings.chunk, count - start)
            noise = rng.normal(size=(rows, settings.dimension)).astype(np.float32)
            noise *= settings.spread / np.linalg.norm(noise, axis=1, keepdims=True)
            vectors = topics[rng.integers(settings.topics, size=rows)] + noise
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            np.save(folder / f"{kind}-{start // settings.chunk:05}.npy", vectors)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process: everything that mining does between the vectors on disk and the rankings."""
    import numpy as np

    from llamafactory_embed.mining.search import (
        HIT,
        IndexSettings,
        merge,
        search_shard,
        shard_bounds,
    )
    from llamafactory_embed.mining.vectors import ChunkedVectors

    from .memory import PeakMemory

    settings = Settings(**request["settings"])
    folder = Path(request["folder"])
    index = IndexSettings(request["index"], memory_mb=settings.memory_mb)
    memory = PeakMemory()
    start = time.perf_counter()
    queries, passages = (
        ChunkedVectors(sorted(folder.glob(f"{kind}-*.npy")), settings.chunk) for kind in ("queries", "passages")
    )
    bounds = shard_bounds(len(passages), passages.dimension, index)
    parts = []
    for number, each in enumerate(bounds):
        file = folder / f"{request['index']}-{number}.found"
        found = np.lib.format.open_memmap(file, "w+", HIT, (len(queries), settings.depth))
        parts.append(search_shard(queries, passages, *each, settings.depth, index, found))
    found = merge(parts, settings.depth)
    seconds = time.perf_counter() - start
    peak = memory.above_baseline()
    np.save(folder / f"{request['index']}.npy", found["passage"])
    return {"seconds": seconds, "peak_mib": peak, "shards": len(bounds)}


def recall(folder: Path, index: str) -> float:
    """The share of the truly nearest that an index found."""
    import numpy as np

    exact, found = np.load(folder / f"{EXACT}.npy"), np.load(folder / f"{index}.npy")
    shares = [len(np.intersect1d(one, other)) / exact.shape[1] for one, other in zip(exact, found, strict=True)]
    return float(np.mean(shares))
