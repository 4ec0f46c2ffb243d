"""One step of 4096 rows of short texts with SmolLM2 cut in depth: does it fit?"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inputs import WORDNET
from .memory import PeakMemory
from .processes import take_turns
from .results_file import Result, spread, table_of
from .training import StepClock, train_by_recipe, variant, write_dataset


TITLE = "A batch of 4096 rows"
CASE = "one step"


@dataclass(frozen=True)
class Settings:
    model: str | None = None  # a folder; None: SmolLM2-135M from the package index
    layers: int = 6
    rows: int = 4096
    grad_cache_tokens: int = 4096


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Once: the memory hardly varies."""
    from llamafactory_embed.demo.smollm2 import prepare_smollm2

    model = Path(settings.model) if settings.model else prepare_smollm2(folder / "smollm2", layers=settings.layers)
    data = write_dataset(folder / "data", short_pairs(settings.rows))
    options = {"grad_cache_tokens": settings.grad_cache_tokens, "num_negatives": 0}
    step = variant("ours", model, data, settings.rows, steps=1, options=options)
    step = dataclasses.replace(step, function="benchmarks.grad_cache_4096:run")
    runs = take_turns({CASE: {f"{settings.rows} rows": step}}, repeats=1)
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[spread("memory of the process", [run["total_gib"] for run in runs], unit="GiB", at_most=24.0)],
        table=table_of(
            runs,
            {
                "seconds": lambda median: f"{median('seconds'):.0f}",
                "peak memory, GiB": lambda median: f"{median('total_gib'):.2f}",
                "of it above the loaded model, GiB": lambda median: f"{median('peak_mib') / 1024:.2f}",
            },
        ),
    )


def short_pairs(count: int) -> list[dict[str, Any]]:
    """Queries and positives of WordNet, no text twice."""
    seen: set[str] = set()
    pairs = []
    for path in sorted(WORDNET.glob("*_to_*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            positives = row["positive"] if isinstance(row["positive"], list) else [row["positive"]]
            new = [text for text in positives if text not in seen]
            if new and row["query"] not in seen and row["query"] != new[0]:
                seen |= {row["query"], new[0]}
                pairs.append({"query": row["query"], "positive": new[0]})
    if len(pairs) < count:
        raise ValueError(f"The bundled WordNet data give {len(pairs)} pairs of different texts, fewer than {count}.")
    return pairs[:: len(pairs) // count][:count]


class WholeStep(StepClock):
    """Times the only step from its beginning."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.step_ends.append(time.perf_counter())


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One process, one step."""
    clock = WholeStep()
    train_by_recipe(request, clock)
    return clock.report(request["rows"]) | {"total_gib": PeakMemory.total() / 1024}
