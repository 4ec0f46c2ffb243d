"""Rows of `stage: contrastive`, ten thousand to a million: preparing them, starting with them, planning an epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import random
import resource
import shutil
import threading
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
LARGEST = "LARGEST_ROWS"  # in the environment: `LARGEST_ROWS=10000000` adds ten million, half an hour and 8 GB of disk


@dataclass(frozen=True)
class Settings:
    largest: int = int(os.environ.get(LARGEST, "1000000"))
    negatives: int = 7
    drawn: int = 1  # negatives of a row in a batch
    long: int = 350  # characters of a passage, beside its number
    short: int = 12
    batch: int = 512
    processes: int = 2  # that prepare

    def cases(self) -> list[tuple[str, int, int]]:
        """Whose texts, how many rows, and how long the texts are. The negatives of a row are its own, or passages of a
        corpus as large as there are rows."""
        lengths = ((10_000, self.long), (100_000, self.long), (1_000_000, self.short), (10_000_000, self.short))
        chosen = [(size, length) for size, length in lengths if size <= self.largest]
        return [(kind, *each) for each in chosen for kind in ("shared negatives", "own texts")]

    def numbers_of_processes(self, kind: str, size: int) -> list[int]:
        """How many processes prepare: the smallest data are not shared out, and the largest take too long for one."""
        several = [self.processes] if size > 10_000 else []
        alone = [1] if size <= 10_000 or (size <= 100_000 and kind == "shared negatives") else []
        return several + alone


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """Of each case: a process that prepares, then one that starts as all later ones do."""
    runs: list[Run] = []
    for kind, size, characters in settings.cases():
        place = folder / f"{kind.replace(' ', '-')}-{size}"
        write_rows(place, kind, size, settings.negatives, characters)
        request = {"folder": str(place), "drawn": settings.drawn, "batch": settings.batch}
        for repeat in range(repeats):
            for processes in settings.numbers_of_processes(kind, size):
                shutil.rmtree(place / "cache", ignore_errors=True)
                variant = Variant("benchmarks.rows:start", request | {"processes": processes})
                first, later = run_fresh(variant), run_fresh(variant)
                name = "1 process" if processes == 1 else f"{processes} processes"
                run = {"case": f"{size:,} rows, {kind}", "variant": name, "repeat": repeat, "rows": size, "kind": kind}
                runs.append(run | {f"first_{name}": value for name, value in first.items()} | later)
                print(f"  {runs[-1]}", flush=True)
        shutil.rmtree(place)
    return result_of(settings, runs)


def result_of(settings: Settings, runs: list[Run]) -> Result:
    """What was measured, beside what was aimed at."""
    figures = [
        spread(
            f"planning, {size:,} rows, {kind}",
            [run["plan_us_a_row"] for run in runs if (run["kind"], run["rows"]) == (kind, size)],
            unit="µs a row",
            at_most=2.0,
        )
        for kind, size, _ in settings.cases()
    ]
    return Result(
        settings=dataclasses.asdict(settings),
        runs=runs,
        figures=figures,
        table=table_of(
            runs,
            {
                "bytes of a row in JSON": lambda median: f"{median('file_bytes_a_row'):.0f}",
                "prepared in, s": lambda median: f"{median('first_start_wall_seconds'):.1f}",
                "CPU, µs a row": lambda median: f"{median('first_start_us_a_row'):.0f}",
                "own memory at most, MB": lambda median: f"{median('first_most_memory') / 1e6:.0f}",
                "started in, s": lambda median: f"{median('start_wall_seconds'):.2f}",
                "own memory, MB": lambda median: f"{median('most_memory') / 1e6:.0f}",
                "planning, µs a row": lambda median: f"{median('plan_us_a_row'):.2f}",
                "a row drawn, µs": lambda median: f"{median('draw_us'):.0f}",
            },
        ),
    )


def write_rows(folder: Path, kind: str, size: int, negatives: int, characters: int) -> None:
    """JSON lines of a query, a positive and negatives. `json.dumps` would take most of the time."""
    folder.mkdir(parents=True)
    prose = "".join(" ".join(prose_paragraphs())).encode("ascii", "ignore").decode()
    prose = "".join(each for each in prose if each.isprintable() and each not in '"\\')
    rng = random.Random(0)

    def passage(number: int) -> str:
        start = number * 37 % (len(prose) - characters)
        return f"{number} {prose[start : start + characters]}"

    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in range(size):
            numbers = range(size + row * negatives, size + (row + 1) * negatives)
            chosen = numbers if kind == "own texts" else [rng.randrange(size) for _ in range(negatives)]
            text = passage(row)
            negative = '", "'.join(map(passage, chosen))
            file.write(f'{{"query": "{row}? {text[:45]}", "positive": "{text}!", "negative": ["{negative}"]}}\n')


def start(request: dict[str, Any]) -> dict[str, float]:
    """What a process of a training does with its rows before and between steps. Memory is its own: pages of files that
    are mapped belong to the machine."""
    from llamafactory_embed.data.registry import HubOptions
    from llamafactory_embed.data.retrieval.common_texts import TextsOfTasks
    from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
    from llamafactory_embed.data.retrieval.entries import make_entry
    from llamafactory_embed.data.retrieval.plan import BatchingOptions
    from llamafactory_embed.data.retrieval.reader import tasks_of_entries
    from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler

    importlib.import_module("datasets")  # seconds, which a training spends anyway
    folder, drawn = Path(request["folder"]), request["drawn"]
    entry = make_entry(NAME, {"file_name": "rows.jsonl", "formatting": "retrieval"}, str(folder))
    few = dataclasses.replace(entry, location=str(_few_rows(folder)))
    tasks_of_entries([few], None, False, drawn, 42, HubOptions())  # this and the next import whatever they need
    hub = HubOptions(str(folder / "cache"), processes=request["processes"])
    with most_memory() as memory:
        begin, wall_begin = used_seconds(), time.perf_counter()
        dataset = RetrievalDataset(tasks_of_entries([entry], None, False, drawn, 42, hub), drawn)
        texts = TextsOfTasks(dataset)
        planning, wall = used_seconds(), time.perf_counter()
        sampler = GlobalBatchSampler(dataset, request["batch"], BatchingOptions(), texts=texts)
        planned = used_seconds()
    keys = [key for batch, _ in zip(sampler, range(8), strict=False) for key in batch]
    drawing = used_seconds()
    for key in keys:
        dataset[key]
    return {
        "start_wall_seconds": wall - wall_begin,
        "start_us_a_row": 1e6 * (planning - begin) / len(dataset),
        "plan_us_a_row": 1e6 * (planned - planning) / len(dataset),
        "most_memory": max(memory),
        "draw_us": 1e6 * (used_seconds() - drawing) / len(keys),
        "batches": len(sampler),
        "file_bytes_a_row": (folder / "rows.jsonl").stat().st_size / len(dataset),
    }


def used_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


@contextlib.contextmanager
def most_memory() -> Iterator[list[int]]:
    """Bytes that this process takes for itself more than before, whenever they were looked at."""
    before = own_memory()
    found = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            found.append(own_memory() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.append(own_memory() - before)


def _few_rows(folder: Path) -> Path:
    few = folder / "few.jsonl"
    with open(folder / "rows.jsonl", encoding="utf-8") as file:
        few.write_text(file.readline(), "utf-8")
    return few


def own_memory() -> int:
    """Bytes of this process that are no pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (anonymous,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(anonymous) * 1024
