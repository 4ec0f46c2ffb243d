"""Tables of docs/benchmarks.md, written from the files under `benchmarks/results`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .gpu.page import describe_all
from .processes import ROOT
from .results_file import RESULTS


PAGE = ROOT / "docs" / "benchmarks.md"
# The page is written by hand; only what stands between these two lines is not.
BLOCK = re.compile(r"(<!-- results: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
GPU_BLOCK = re.compile(r"(<!-- results on a GPU -->\n).*?(<!-- end -->)", re.DOTALL)


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Put the present results into the page."""
    text = page.read_text("utf-8")
    blocks = {match["name"] for match in BLOCK.finditer(text)}
    missing = sorted(path.stem for path in results.glob("*.json") if path.stem not in blocks)
    if missing:
        raise ValueError(f"{page} has no place for the results of {', '.join(missing)}: add `<!-- results: NAME -->`.")

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}{describe(results / (match['name'] + '.json'))}{match[3]}"

    def fill_gpu(match: re.Match[str]) -> str:
        return f"{match[1]}{describe_all(results / 'gpu')}{match[2]}"

    temporary = page.with_suffix(".tmp")
    temporary.write_text(GPU_BLOCK.sub(fill_gpu, BLOCK.sub(fill, text)), "utf-8")
    os.replace(temporary, page)


def describe(path: Path) -> str:
    """A result as Markdown."""
    if not path.is_file():
        return "\nNot measured yet.\n\n"
    content = json.loads(path.read_text("utf-8"))
    figures = [["figure", "median", "range", "aim", "reached"]]
    figures += [_figure_cells(figure) for figure in content["figures"]]
    return f"\n{_table(content['table'])}\n{_table(figures)}\n{_origin(content)}\n\n"


def _figure_cells(figure: dict[str, Any]) -> list[str]:
    unit = figure["unit"]

    def write(value: float) -> str:
        return f"{value:.0f} %" if unit == "%" else f"{value:.2f} {unit}".replace(" ×", "×")

    aim = reached = ""
    for key, sign in (("at_least", "≥"), ("at_most", "≤")):
        if figure[key] is not None:
            aim, reached = f"{sign} {write(figure[key])}", "yes" if figure["reached"] else "**no**"
    return [
        figure["what"],
        write(figure["value"]),
        f"{write(figure['lowest'])} – {write(figure['highest'])}",
        aim,
        reached,
    ]


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _origin(content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    times = "once" if content["repeats"] == 1 else f"{content['repeats']} times"
    return f"Run {times} on {content['date']}: {machine['cores']} cores of {machine['cpu']}, {versions}."
