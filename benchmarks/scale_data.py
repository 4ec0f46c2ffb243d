"""Data of any size for the rehearsal of scale, and an embedder that costs nothing: it looks at a text's first word."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


TOPICS = 2000  # texts lie around so many points
SPREAD = 0.7  # length of the difference from that point
PHRASES = 50_000
WORDS_OF_PHRASE = 10


class TextMaker:
    """Different texts of a topic, a number and some phrases of ten words each."""

    def __init__(self) -> None:
        rng = random.Random(0)
        words = [f"w{number}" for number in range(20_000)]
        self._phrases = [" ".join(rng.choices(words, k=WORDS_OF_PHRASE)) for _ in range(PHRASES)]

    def text(self, number: int, kind: str, phrases: int) -> str:
        """The text of this number; equal numbers of two kinds have one topic."""
        chosen = (self._phrases[(number * 7919 + 104_729 * each) % PHRASES] for each in range(phrases))
        return f"{number % TOPICS} {kind}{number} {' '.join(chosen)}"


def write_collection(folder: Path, passages: int, queries: int) -> None:
    """A folder in BEIR's layout; each query has one passage, spread over the corpus. Its splits are the same."""
    maker = TextMaker()
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number in range(passages):
            file.write(f'{{"_id": "p{number}", "text": "{maker.text(number, "p", 3)}"}}\n')
    answers = [number * passages // queries for number in range(queries)]
    with open(folder / "queries.jsonl", "w", encoding="utf-8") as file:
        for number in answers:
            file.write(json.dumps({"_id": f"q{number}", "text": maker.text(number, "q", 1)}) + "\n")
    lines = "".join(f"q{number}\tp{number}\t1\n" for number in answers)
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", "utf-8")


def write_rows(path: Path, rows: int, kind: str) -> None:
    """Rows of a query and its positive."""
    maker = TextMaker()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            query, positive = maker.text(number, kind, 1), f"p{number}"
            file.write(f'{{"query": "{query}", "positive": "{positive}"}}\n')


class HashEmbedder:
    """Unit vectors [n, d]: the topic's, and a difference that follows from the digest of the text."""

    def __init__(self, dimension: int) -> None:
        rng = np.random.default_rng(0)
        self.dimension = dimension
        topics = rng.normal(size=(TOPICS, dimension))
        self._topics = (topics / np.linalg.norm(topics, axis=1, keepdims=True)).astype(np.float32)
        self._factors = rng.integers(0, 2**63, dimension, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of some texts."""
        from llamafactory_embed.files import digest

        topics = np.fromiter((int(text[: text.index(" ")]) for text in texts), dtype=np.int64, count=len(texts))
        digests = np.frombuffer(b"".join(digest(text) for text in texts), dtype=np.uint64)
        noise = ((digests[:, None] * self._factors) >> np.uint64(40)).astype(np.float32) / 2**23 - 1
        noise *= SPREAD / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors = self._topics[topics] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    # as mining's models

    def write_queries(self, texts: Sequence[str], instructions: Sequence[str], file: Path) -> None:
        self.write_documents(texts, "", file)

    def write_documents(self, texts: Sequence[str], instruction: str, file: Path) -> None:
        from llamafactory_embed.files import whole_file

        with whole_file(file) as temporary, open(temporary, "wb") as content:
            np.save(content, self.embed(texts))


class HashEncoder(HashEmbedder):
    """The same with what evaluation asks of an `Encoder`."""

    def __init__(self, dimension: int) -> None:
        import torch

        super().__init__(dimension)
        self.config = SimpleNamespace(normalize=True, compares_unit_length=True, similarity="cosine")
        self.overrides: dict[str, Any] = {}
        self.model = SimpleNamespace(device=torch.device("cpu"))

    def encode(self, texts: Sequence[str], *, convert_to: str = "numpy", **how: Any) -> Any:
        """Embeddings [n, d], whatever the role and the prompt."""
        import torch

        vectors = self.embed(texts) if len(texts) else np.empty((0, self.dimension), np.float32)
        return torch.from_numpy(vectors) if convert_to == "torch" else vectors

    def ranges_for(self, *about: Any) -> None:
        """No precision is asked for."""

    def close(self) -> None:
        """Nothing to close."""
