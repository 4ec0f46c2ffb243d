"""What a benchmark found, as numbers and as the file under `benchmarks/results`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .processes import ROOT, Run


RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "llamafactory", "sentence-transformers")


@dataclass(frozen=True)
class Figure:
    """One number that was aimed at, with the smallest and largest value of the repeats."""

    what: str
    value: float
    lowest: float
    highest: float
    unit: str = "×"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the value lies where it should."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True)
class Result:
    """A benchmark's outcome; `table` has its headings as first row."""

    settings: dict[str, Any]
    runs: list[Run]
    figures: list[Figure]
    table: list[list[str]] = field(default_factory=list)


def ratio(
    what: str,
    runs: Sequence[Run],
    case: str,
    of: str,
    to: str,
    key: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """How many times variant `to`'s value of `key` goes into variant `of`'s: the median over the pairs that ran side
    by side. What slows the machine for a while slows both of a pair."""
    values = {(run["variant"], run["repeat"]): run[key] for run in runs if run["case"] == case}
    repeats = sorted({repeat for _, repeat in values})
    pairs = [values[of, repeat] / values[to, repeat] for repeat in repeats]
    return spread(what, pairs, at_least=at_least, at_most=at_most)


def spread(
    what: str,
    values: Sequence[float],
    *,
    unit: str = "×",
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """The median of values with their range."""
    return Figure(what, statistics.median(values), min(values), max(values), unit, at_least, at_most)


def median_of(runs: Sequence[Run], case: str, variant: str, key: str) -> float:
    """The median of one variant's values."""
    return statistics.median(run[key] for run in runs if run["case"] == case and run["variant"] == variant)


def table_of(runs: Sequence[Run], columns: dict[str, Callable[[Callable[[str], float]], str]]) -> list[list[str]]:
    """A row for every variant of every case. A column writes a cell from a function that gives the medians."""
    rows = [["case", "variant", *columns]]
    for case, variant in dict.fromkeys((run["case"], run["variant"]) for run in runs):
        medians = partial(median_of, runs, case, variant)
        cells = [write(medians) for write in columns.values()]
        rows.append([case, variant, *cells])
    return rows


def check_equal(runs: Sequence[Run], case: str, key: str = "first_loss", tolerance: float = 1e-5) -> None:
    """Refuse to compare variants that did not compute the same thing."""
    values = {(run["variant"], run["repeat"]): run[key] for run in runs if run["case"] == case}
    first = next(iter(values.values()))
    if not all(abs(value - first) <= tolerance for value in values.values()):  # NaN is equal to nothing
        raise ValueError(f"{case}: `{key}` is not the same everywhere, so no comparison is fair: {values}.")


def save(name: str, result: Result, repeats: int, folder: Path = RESULTS) -> Path:
    """Write the result's file."""
    content = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "repeats": repeats,
        "machine": machine(),
        "settings": result.settings,
        "figures": [dataclasses.asdict(each) | {"reached": each.reached} for each in result.figures],
        "table": result.table,
        "runs": result.runs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)
    return path


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    cores = len(os.sched_getaffinity(0))
    return {"cpu": models[0] if models else platform.processor(), "cores": cores, "versions": versions}
