"""Mining from tests: rows in, rows out, and the answer found by looking at everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions
from llamafactory_embed.mining.vectors import ChunkedVectors


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def mined(tmp_path: Path, name: str = "mined", **options: Any) -> list[dict[str, Any]]:
    """The rows that these options give; all small enough to be cut into several chunks."""
    settings = {"output": str(tmp_path / f"{name}.jsonl"), "chunk_size": 16, "num_negatives": 4, "ranks": "2:20"}
    mine(MiningOptions(**(settings | {key: str(value) if isinstance(value, Path) else value
                                      for key, value in options.items()})))  # fmt: skip
    return read_lines(tmp_path / f"{name}.jsonl")


def own_corpus(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The passages of some rows, each once."""
    texts = [text for row in rows for key in ("positive", "negative") for text in as_list(row.get(key, []))]
    seen = {}
    for text in texts:
        seen.setdefault(" ".join(text.casefold().split()), text)
    return list(seen.values())


def as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def ranked(queries: np.ndarray, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities [Q, P] and the whole ranking [Q, P]."""
    similarities = queries @ passages.T
    return similarities, np.argsort(-similarities, axis=1, kind="stable")


def on_disk(vectors: np.ndarray, folder: Path, name: str, chunk: int = 10**9) -> ChunkedVectors:
    """Vectors in files of so many rows, as the embedding step leaves them."""
    paths = []
    for start in range(0, len(vectors), chunk):
        paths.append(folder / f"{name}-{start:05}.npy")
        np.save(paths[-1], vectors[start : start + chunk].astype(np.float32))
    return ChunkedVectors(paths, chunk)
