"""Rows of `stage: contrastive`, ten thousand to a million: preparing them, starting with them, planning an epoch."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inputs import prose_paragraphs
from .processes import Run, Variant, run_fresh
from .results_file import Result, spread, table_of


TITLE = "Rows of retrieval data"
NAME = "rows"


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    negatives: int = 7
    drawn: int = 1  # negatives of a row in a batch
    characters: int = 350  # of a passage
    batch: int = 512
    # Whose texts: each row's own, or negatives that are passages of a corpus as large as there are rows.
    kinds: tuple[str, ...] = ("own texts", "shared negatives")


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Of each kind and size: a process that prepares, then one that starts as all later ones do."""
    runs: list[Run] = []
    for kind in settings.kinds:
        for size in settings.sizes:
            place = folder / f"{kind.replace(' ', '-')}-{size}"
            write_rows(place, kind, size, settings)
            request = {"folder": str(place), "drawn": settings.drawn, "batch": settings.batch}
            for repeat in range(repeats):
                for path in (place / "cache").rglob("*"):
                    if path.is_file():
                        path.unlink()
                case = f"{kind}, {size:,} rows"
                first = run_fresh(Variant("benchmarks.rows:start", request))
                later = run_fresh(Variant("benchmarks.rows:start", request))
                first = {f"first_{name}": value for name, value in first.items()}
                runs.append({"case": case, "variant": "mapped", "repeat": repeat, "rows": size, **first, **later})
                print(f"  {case}: {runs[-1]}", flush=True)
            for path in sorted(place.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    largest = [run for run in runs if run["rows"] == max(settings.sizes)]
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=[
            spread(
                f"planning, {kind}, of {max(settings.sizes):,} rows",
                [run["plan_us_a_row"] for run in largest if run["case"].startswith(kind)],
                unit="µs a row",
                at_most=2.0,
            )
            for kind in settings.kinds
        ],
        table=table_of(
            runs,
            {
                "prepared in, CPU s": lambda median: f"{median('first_start_seconds'):.1f}",
                "started in, CPU s": lambda median: f"{median('start_seconds'):.2f}",
                "bytes a row in a process": lambda median: f"{median('bytes_a_row'):.0f}",
                "planning, µs a row": lambda median: f"{median('plan_us_a_row'):.2f}",
                "a row drawn, µs": lambda median: f"{median('draw_us'):.0f}",
            },
        ),
    )


def write_rows(folder: Path, kind: str, size: int, settings: Settings) -> None:
    """JSON lines of a query, a positive and negatives, and their registry."""
    folder.mkdir(parents=True)
    info = {NAME: {"file_name": "rows.jsonl", "formatting": "retrieval"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in _rows(kind, size, settings):
            file.write(json.dumps(row) + "\n")


def _rows(kind: str, size: int, settings: Settings) -> Iterator[dict[str, Any]]:
    prose = "".join(" ".join(prose_paragraphs())).encode("ascii", "ignore").decode()
    rng = random.Random(0)

    def passage(number: int) -> str:
        start = number * 37 % (len(prose) - settings.characters)
        return f"{number} {prose[start : start + settings.characters]}"

    for row in range(size):
        own = range(size + row * settings.negatives, size + (row + 1) * settings.negatives)
        numbers = own if kind == "own texts" else rng.sample(range(size), settings.negatives)
        yield {
            "query": f"{row}? {passage(row)[:45]}",
            "positive": passage(row) + "!",
            "negative": list(map(passage, numbers)),
        }


def start(request: dict[str, Any]) -> dict[str, float]:
    """What a process of a training does with its rows before and between steps. Memory is its own: pages of files that
    are mapped belong to the machine."""
    from llamafactory_embed.data.files import HubOptions
    from llamafactory_embed.data.retrieval.common_texts import TextsOfTasks
    from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
    from llamafactory_embed.data.retrieval.plan import BatchingOptions
    from llamafactory_embed.data.retrieval.reader import load_tasks
    from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler

    folder, drawn = Path(request["folder"]), request["drawn"]
    load_tasks(NAME, str(_few_rows(folder)), num_negatives=drawn)  # imports whatever it needs
    before, begin = own_memory(), time.process_time()
    tasks = load_tasks(NAME, str(folder), num_negatives=drawn, hub=HubOptions(str(folder / "cache")))
    dataset = RetrievalDataset(tasks, drawn)
    texts = TextsOfTasks(dataset)
    planning = time.process_time()
    sampler = GlobalBatchSampler(dataset, request["batch"], BatchingOptions(), texts=texts)
    planned = time.process_time()
    memory = own_memory() - before
    keys = [key for batch, _ in zip(sampler, range(8), strict=False) for key in batch]
    drawing = time.process_time()
    for key in keys:
        dataset[key]
    return {
        "start_seconds": planning - begin,
        "plan_us_a_row": 1e6 * (planned - planning) / len(dataset),
        "bytes_a_row": memory / len(dataset),
        "draw_us": 1e6 * (time.process_time() - drawing) / len(keys),
        "batches": len(sampler),
    }


def _few_rows(folder: Path) -> Path:
    few = folder / "few"
    few.mkdir(exist_ok=True)
    with open(folder / "rows.jsonl", encoding="utf-8") as file:
        (few / "rows.jsonl").write_text(file.readline(), "utf-8")
    (few / "dataset_info.json").write_text((folder / "dataset_info.json").read_text("utf-8"), "utf-8")
    return few


def own_memory() -> int:
    """Bytes of this process that are no pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (anonymous,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(anonymous) * 1024
