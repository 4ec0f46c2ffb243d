"""The tables of docs/which-start.md, written from the results of which_start.py."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from which_start_data import HELD_OUT, TRAINED

from llamafactory_embed.files import write_text


PAGE = Path(__file__).parents[1] / "docs" / "which-start.md"
# The page is written by hand; only what stands between these two lines is not.
BLOCK = re.compile(r"(<!-- results of scripts/which_start.py -->\n).*?(<!-- end -->)", re.DOTALL)
POOLINGS = ("mean", "last", "mask")
PRECISIONS = {"float32": "float", "int8": "int8", "binary": "bits"}

Row = dict[str, Any]
Values = dict[tuple[str, str], dict[int, Row]]
"""By start and pooling, then by seed: nDCG@10 of each task in each precision."""


def write_page(results: Row, page: Path = PAGE) -> None:
    """Put the present results into the page."""
    tables = "\n".join(["", *tables_of(results)])
    write_text(page, BLOCK.sub(lambda found: f"{found[1]}{tables}\n{found[2]}", page.read_text("utf-8")))


def tables_of(results: Row) -> list[str]:
    """Starts by poolings in float; then what int8 and bits cost; then the controls beside what they control."""
    values: Values = defaultdict(dict)
    for cell in results["cells"].values():
        values[cell["start"], cell["pooling"]][cell["seed"]] = cell["ndcg@10"]
    starts = list(dict.fromkeys(start for start, _ in values if (start, "last") in values))
    controls = [start for start, _ in values if start not in starts]
    seeds = sorted({cell["seed"] for cell in results["cells"].values()})
    lines = [f"Seeds: {', '.join(map(str, seeds))}.", ""]
    for title, tasks in (("In-domain", TRAINED), ("Held out", HELD_OUT)):
        lines += table(f"{title}, float", POOLINGS, starts, lambda start, pooling, of=tasks: score(values[start, pooling], of, "float32"))  # fmt: skip
    for title, tasks in (("In-domain", TRAINED), ("Held out", HELD_OUT)):
        lines += table(
            f"{title}, mean pooling, documents in",
            list(PRECISIONS.values()),
            [*starts, *dict.fromkeys(controls)],
            lambda start, name, of=tasks: score(values[start, "mean"], of, precision_named(name)),
        )
    return lines[:-1]


def precision_named(shown: str) -> str:
    return next(name for name, each in PRECISIONS.items() if each == shown)


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
