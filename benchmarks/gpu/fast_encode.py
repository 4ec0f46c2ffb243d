"""`Encoder.encode` beside `SentenceTransformer.encode`: one checkpoint, the same texts, tokenization included."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..encode import save_checkpoint, short_paragraphs
from ..inputs import ModelSize
from .machine import require
from .record import Aim
from .steps import Bench


AIM = Aim(at_least=1.3)
BATCH_SIZES = (32, 128, 512)  # of which sentence-transformers gets its best
SAME = 1e-3


def measure(bench: Bench) -> None:
    """A Qwen2 of Qwen3-0.6B's depth and width, on sentences and on long texts."""
    size = bench.size(
        ModelSize(28, 1024, 3072, 16, 8, vocabulary=8192, longest=512), ModelSize(2, 32, 48, 4, 2, 400, 96)
    )
    folder = save_checkpoint(bench.folder, size)
    count = bench.size(8192, 24)
    sentences = [text[: bench.size(2000, 100)] for text in short_paragraphs(min(count, 5000))]
    long_texts = [" ".join(sentences[start : start + 12]) for start in range(0, len(sentences) - 12, 12)]
    for kind, texts in (("sentences", sentences), ("texts of a dozen of them", long_texts or sentences)):
        bench.record.attempt(kind, lambda k=kind, t=texts: compare(bench, folder, k, t))


def compare(bench: Bench, folder: Path, kind: str, texts: list[str]) -> None:
    """In float32 the same embeddings; then both in bfloat16."""
    from llamafactory_embed import Encoder

    require("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    few = texts[: bench.size(64, 8)]
    exact = Encoder(folder, device=bench.device, dtype=torch.float32, backend="sdpa").encode(few)
    theirs: Any = SentenceTransformer(str(folder), device=bench.device, model_kwargs={"dtype": torch.float32})
    expected = theirs.encode(few, normalize_embeddings=True)
    bench.record.error(f"{kind}: the same embeddings in float32", float(np.abs(exact - expected).max()), SAME)

    encoder = Encoder(folder, device=bench.device, dtype=torch.bfloat16, backend=bench.backend)
    ours = seconds_to_encode(encoder.encode, texts)
    theirs = SentenceTransformer(str(folder), device=bench.device, model_kwargs={"dtype": torch.bfloat16})
    times = {
        size: seconds_to_encode(lambda given, size=size: theirs.encode(given, batch_size=size), texts)
        for size in bench.size(BATCH_SIZES, (8,))
    }
    best = min(times, key=lambda size: times[size])
    record = bench.record
    record.figure(f"{kind}: ours, {len(texts):,} texts", len(texts) / ours, "texts/s")
    record.figure(f"{kind}: sentence-transformers, batch size {best}", len(texts) / times[best], "texts/s")
    record.figure(f"{kind}: times as fast", times[best] / ours, "×", AIM)


def seconds_to_encode(encode: Any, texts: list[str]) -> float:
    """Until the embeddings are numpy's, after a few texts to warm up."""
    encode(texts[:64])
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start
