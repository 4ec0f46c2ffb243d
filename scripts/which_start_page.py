"""The tables of docs/which-start.md, written from the results of which_start.py."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from which_start_data import HELD_OUT, TRAINED

from llamafactory_embed.files import write_text


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "which-start.md"
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
# The page is written by hand; only what stands between these two lines is not.
BLOCK = re.compile(r"(<!-- results: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
POOLINGS = ("mean", "last", "mask")
STARTS = ("causal", "bidirectional", "mntp", "ddm", "block_ddm")
PRECISIONS = {"float": "float32", "int8": "int8", "bits": "binary"}
JUDGED = {"In-domain": tuple(TRAINED), "Held out": HELD_OUT}

Row = dict[str, Any]
Values = dict[tuple[str, str], dict[int, Row]]
"""By start and pooling, then by seed: nDCG@10 of each task in each precision."""


def write_page(page: Path = PAGE, folder: Path = RESULTS) -> None:
    """Put the present results into the page."""

    def fill(found: re.Match[str]) -> str:
        path = folder / f"{found['name']}.json"
        results = json.loads(path.read_text("utf-8")) if path.is_file() else {"cells": {}}
        return "\n".join([f"{found[1]}", *tables_of(results), found[3]])

    write_text(page, BLOCK.sub(fill, page.read_text("utf-8")))


def tables_of(results: Row) -> list[str]:
    """Starts by poolings in float; then what int8 and bits cost, with the controls beside what they control."""
    values: Values = defaultdict(dict)
    seeds = seeds_of(results["cells"].values())
    for cell in results["cells"].values():
        if cell["seed"] in seeds:
            values[cell["start"], cell["pooling"]][cell["seed"]] = cell["ndcg@10"]
    starts = list(dict.fromkeys(start for start, pooling in values))
    compared = [start for start in starts if (start, "last") in values]

    def by_pooling(tasks: Sequence[str]) -> Callable[[str, str], str]:
        return lambda start, pooling: score(values[start, pooling], tasks, "float32")

    def by_precision(tasks: Sequence[str]) -> Callable[[str, str], str]:
        return lambda start, shown: score(values[start, "mean"], tasks, PRECISIONS[shown])

    if not seeds:
        return ["Not measured yet.", ""]
    lines = [f"Seeds: {', '.join(map(str, seeds))}.", ""]
    for title, tasks in JUDGED.items() if compared else ():
        lines += table(f"{title}, float", POOLINGS, compared, by_pooling(tasks))
    for title, tasks in JUDGED.items():
        lines += table(f"{title}, mean pooling", list(PRECISIONS), starts, by_precision(tasks))
    return lines


def seeds_of(cells: Iterable[Row]) -> list[int]:
    """Seeds of which as many cells are there as of the most complete one, controls aside."""
    counts = Counter(cell["seed"] for cell in cells if cell["start"] in STARTS)
    most = max(counts.values(), default=0)
    return sorted(seed for seed, count in counts.items() if count == most)


def table(title: str, columns: Sequence[str], rows: Sequence[str], cell: Callable[[str, str], str]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row.replace('_', ' ')} | {' | '.join(cell(row, column) for column in columns)} |" for row in rows]
    return [*lines, ""]


def score(by_seed: dict[int, Row], tasks: Sequence[str], precision: str) -> str:
    """The mean over tasks: its mean over seeds, with its standard deviation."""
    means = [float(np.mean([each[task][precision] for task in tasks])) for each in by_seed.values()]
    if not means:
        return ""
    spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
    return f"{np.mean(means):.3f}{spread}"
