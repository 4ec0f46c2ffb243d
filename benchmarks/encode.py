"""`Encoder.encode` against `SentenceTransformer.encode`, one checkpoint, real paragraphs."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .inputs import ModelSize, prose_paragraphs, save_model
from .processes import Variant, run_fresh, take_turns
from .results_file import Result, ratio, table_of


TITLE = "Encoding"
CASE = "paragraphs"
OURS = "Encoder"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=lambda: ModelSize(layers=3))
    texts: int = 5000
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)  # of which sentence-transformers gets its best
    texts_to_choose_by: int = 1000
    warm_up_texts: int = 100


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """First the peer's best batch size, then both in turns."""
    checkpoint = save_checkpoint(folder, settings.model)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(short_paragraphs(settings.texts)), "utf-8")
    request = {"checkpoint": str(checkpoint), "texts": str(texts), "warm_up_texts": settings.warm_up_texts}
    choice = {"batch_sizes": settings.batch_sizes, "count": settings.texts_to_choose_by}
    seconds = run_fresh(Variant("benchmarks.encode:time_batch_sizes", request | choice))
    batch_size = int(min(seconds, key=lambda size: seconds[size]))
    theirs = f"SentenceTransformer, batch size {batch_size}"
    variants = {
        OURS: Variant("benchmarks.encode:ours", request | {"output": str(folder / "ours.npy")}),
        theirs: Variant(
            "benchmarks.encode:sentence_transformers",
            request | {"output": str(folder / "theirs.npy"), "batch_size": batch_size},
        ),
    }
    runs = take_turns({CASE: variants}, repeats)
    check_same_embeddings(folder / "ours.npy", folder / "theirs.npy")
    return Result(
        settings=dataclasses.asdict(settings) | {"seconds_of_batch_sizes": seconds},
        runs=runs,
        figures=[
            ratio("speed", runs, CASE, theirs, OURS, "seconds", at_least=1.0),
            ratio("peak memory", runs, CASE, OURS, theirs, "peak_mib"),
        ],
        table=table_of(
            runs,
            {
                "texts/s": lambda median: f"{settings.texts / median('seconds'):.0f}",
                "seconds": lambda median: f"{median('seconds'):.2f}",
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
            },
        ),
    )


def save_checkpoint(folder: Path, size: ModelSize) -> Path:
    """One folder that both load: sentence-transformers reads a plain model as one with mean pooling."""
    from transformers import AutoModel, AutoTokenizer

    from llamafactory_embed.hparams.embedding import EmbeddingOptions
    from llamafactory_embed.loading import checkpoint
    from llamafactory_embed.model.embedding import EmbeddingModel
    from llamafactory_embed.model.embedding_config import EmbeddingConfig

    base = save_model(folder / "base", size)
    config = EmbeddingConfig.from_options(EmbeddingOptions(), cutoff_len=size.longest)
    checkpoint.save_checkpoint(EmbeddingModel(AutoModel.from_pretrained(base), config), folder / "checkpoint")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def short_paragraphs(count: int, seed: int = 0) -> list[str]:
    """One or two whole sentences of the bundled prose each, in random order."""
    rng = random.Random(seed)
    found = []
    for paragraph in prose_paragraphs():
        sentences = re.split(r"(?<=[.!?;:]) ", paragraph)
        while sentences:
            size = rng.choice((1, 1, 2))
            found.append(" ".join(sentences[:size]))
            del sentences[:size]
    if len(found) < count:
        raise ValueError(f"The bundled prose gives {len(found)} short paragraphs, fewer than {count}.")
    return rng.sample(found, count)


def check_same_embeddings(ours: Path, theirs: Path) -> None:
    """Both must have computed the same embeddings."""
    import numpy as np

    difference = float(np.abs(np.load(ours) - np.load(theirs)).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"The embeddings differ by {difference:.2g}, no comparison is fair.")


def ours(request: dict[str, Any]) -> dict[str, Any]:
    """One process of ours, as its users call it."""
    from llamafactory_embed import Encoder

    encoder = Encoder(request["checkpoint"], device="cpu")
    return time_encoding(request, encoder.encode)


def sentence_transformers(request: dict[str, Any]) -> dict[str, Any]:
    """One process of sentence-transformers at a given batch size."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(request["checkpoint"], device="cpu")
    size = request["batch_size"]
    return time_encoding(request, lambda texts: model.encode(texts, batch_size=size, normalize_embeddings=True))


def time_batch_sizes(request: dict[str, Any]) -> dict[str, float]:
    """Seconds of each batch size on some of the texts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(request["checkpoint"], device="cpu")
    texts = read_texts(request)[: request["count"]]
    model.encode(texts[: request["warm_up_texts"]])
    seconds = {}
    for size in request["batch_sizes"]:
        start = time.perf_counter()
        model.encode(texts, batch_size=size, normalize_embeddings=True)
        seconds[str(size)] = time.perf_counter() - start
    return seconds


def read_texts(request: dict[str, Any]) -> list[str]:
    """What is embedded."""
    return json.loads(Path(request["texts"]).read_text("utf-8"))


def time_encoding(request: dict[str, Any], encode: Any) -> dict[str, Any]:
    """Seconds and memory of embedding all texts after some to warm up; the embeddings are kept."""
    import numpy as np

    from .memory import PeakMemory

    texts = read_texts(request)
    encode(texts[: request["warm_up_texts"]])
    memory = PeakMemory()
    start = time.perf_counter()
    embeddings = encode(texts)
    seconds = time.perf_counter() - start
    peak = memory.above_baseline()
    np.save(request["output"], embeddings)
    return {"seconds": seconds, "peak_mib": peak}
