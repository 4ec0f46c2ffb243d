"""docs/originals.md, made of the table: `python -m tests.published.page` writes it, a test compares it."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.published.table import OTHERS, ROWS, NotARecipe, Row


PAGE = Path(__file__).parents[2] / "docs" / "originals.md"

FAMILIES = {
    "llm2vec": "LLM2Vec",
    "diffusion_embedder": "Diffusion Embedder",
    "llm2vec_word_fork": "LLM2Vec's word-level fork",
    "pooling_and_attention": "Pooling-and-Attention",
    "tdro": "tDRO",
    "diffullama": "DiffuLLaMA",
}

TOP = """# Original recipes, file by file

Every recipe file of the five originals, and what has the same effect here. A test parses each of our recipes with
LLaMA-Factory's own parser and compares the effective values with the facts in `tests/published/facts/`; differences
are those of the column "departures", each with its reason. This page is generated (`make docs`) from
`tests/published/table.py`.

None of these recipes was run at its published size here: the models are not in a package index. Tiny variants of each
family are trained by the tests, and one recipe of each kind for 20 steps beside a second implementation in plain torch
(`tests/published/runs`): every step's loss and gradient norm and the final weights agree.
"""


def family_of(row: Row | NotARecipe) -> str:
    return row.original.partition("/")[0]


def line_of(row: Row | NotARecipe) -> str:
    original = f"`{row.original.partition('/')[2]}`"
    if isinstance(row, NotARecipe):
        return f"| {original} | {row.instead} | |"
    ours = f"[{Path(row.recipe).stem}](../{row.recipe})"
    if row.overrides:
        ours += f" `{row.overrides}`"
    departures = "; ".join(f"`{name}`: {reason}" for name, reason in row.departures.items())
    return f"| {original} | {ours} | {departures} |"


def page() -> str:
    parts = [TOP]
    for family, title in FAMILIES.items():
        rows = [row for row in itertools.chain(ROWS, OTHERS) if family_of(row) == family]
        table = ["| original | ours | departures |", "|---|---|---|", *map(line_of, rows)]
        parts.append("\n".join([f"## {title}", "", *table, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
