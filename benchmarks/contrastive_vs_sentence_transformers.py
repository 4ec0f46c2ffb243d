"""A training step of `stage: contrastive` against one of sentence-transformers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from .inputs import ModelSize, TripletSizes, make_triplets, save_model
from .processes import take_turns
from .results_file import Result, check_equal, ratio, table_of
from .training import variant, write_dataset


TITLE = "`stage: contrastive` against sentence-transformers"
OURS, THEIRS = "llamafactory-embed", "sentence-transformers"


@dataclass(frozen=True)
class Settings:
    model: ModelSize = field(default_factory=ModelSize)
    rows: int = 16
    steps: int = 3  # the first one warms up
    mean_length: int = 90
    fill: float = 1 / 3


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Heavy-tailed and equal lengths, both trainers."""
    from transformers import AutoTokenizer

    model = save_model(folder / "model", settings.model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    cases = {}
    for case, fill in {"heavy-tailed lengths": settings.fill, "equal lengths": 1.0}.items():
        sizes = TripletSizes(settings.rows, settings.steps, settings.mean_length, fill)
        data = write_dataset(folder / case, make_triplets(tokenizer, sizes))
        cases[case] = {
            OURS: variant("ours", model, data, settings.rows, settings.steps),
            THEIRS: variant("sentence_transformers", model, data, settings.rows, settings.steps),
        }
    runs = take_turns(cases, repeats)
    for case in cases:
        check_equal(runs, case)
    heavy, equal = cases
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[
            ratio("speed, heavy-tailed lengths", runs, heavy, THEIRS, OURS, "seconds", at_least=2.5),
            ratio("peak memory, heavy-tailed lengths", runs, heavy, OURS, THEIRS, "peak_mib", at_most=0.6),
            ratio("speed, equal lengths", runs, equal, THEIRS, OURS, "seconds", at_least=1.0),
            ratio("peak memory, equal lengths", runs, equal, OURS, THEIRS, "peak_mib"),
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
