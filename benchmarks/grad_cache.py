"""GradCache against the cached loss of sentence-transformers at equal chunks, and against our plain step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from .inputs import ModelSize, TripletSizes, make_triplets, save_model
from .processes import take_turns
from .results_file import Result, check_equal, ratio, table_of
from .training import variant, write_dataset


TITLE = "GradCache"
CASE = "heavy-tailed lengths"
CACHED, PLAIN, THEIRS = "ours, cached", "ours, plain", "sentence-transformers, cached"


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    rows: int = 64
    steps: int = 2  # the first one warms up
    mean_length: int = 48
    fill: float = 1 / 3
    chunk_texts: int = 32  # the default of sentence-transformers


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """One chunk holds as many tokens as `chunk_texts` texts of mean length, on both sides."""
    from transformers import AutoTokenizer

    model = save_model(folder / "model", settings.model)
    sizes = TripletSizes(settings.rows, settings.steps, settings.mean_length, settings.fill)
    data = write_dataset(folder / "data", make_triplets(AutoTokenizer.from_pretrained(model), sizes))
    chunk_tokens = settings.chunk_texts * settings.mean_length
    rows, steps = settings.rows, settings.steps
    variants = {
        CACHED: variant("ours", model, data, rows, steps, options={"grad_cache_tokens": chunk_tokens}),
        THEIRS: variant("sentence_transformers", model, data, rows, steps, chunk_tokens=chunk_tokens),
        PLAIN: variant("ours", model, data, rows, steps),
    }
    runs = take_turns({CASE: variants}, repeats)
    check_equal(runs, CASE)
    return Result(
        settings=dataclasses.asdict(settings) | {"chunk_tokens": chunk_tokens},
        runs=runs,
        figures=[
            ratio("speed, against sentence-transformers", runs, CASE, THEIRS, CACHED, "seconds", at_least=2.5),
            ratio("time, against our plain step", runs, CASE, CACHED, PLAIN, "seconds", at_most=1.3),
            ratio("peak memory, against sentence-transformers", runs, CASE, CACHED, THEIRS, "peak_mib"),
            ratio("peak memory, against our plain step", runs, CASE, CACHED, PLAIN, "peak_mib"),
        ],
        table=table_of(
            runs,
            {
                "samples/s": lambda median: f"{median('samples_per_second'):.2f}",
                "seconds a step": lambda median: f"{median('seconds'):.2f}",
                "peak memory, MiB": lambda median: f"{median('peak_mib'):.0f}",
                "loss of step 1": lambda median: f"{median('first_loss'):.6f}",
            },
        ),
    )
