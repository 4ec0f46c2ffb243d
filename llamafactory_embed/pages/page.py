"""The frame of a page: its style, and a column for what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape


STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1d2126; --soft: #5d6671; --line: #dfe2e6; --box: #fff;
  --bar: #a9b4c0; --best: #0b7a75; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --text: #e6e9ec; --soft: #9aa4af; --line: #2d3339; --box: #1b1f24; --bar: #55606b;
    --best: #3cc4b6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .8rem; }
p { margin: .5rem 0; } .soft { color: var(--soft); }
figure { margin: 0; }
.box { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 14px system-ui, sans-serif; } svg .value { fill: var(--text); font-weight: 600; }
.bar { fill: var(--bar); } .best { fill: var(--best); }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--best); stroke-width: 2.5; }
.wide { overflow-x: auto; margin-top: 1rem; }
code { white-space: nowrap; font: .9em ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 500; color: var(--soft); } th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; } tr.best td { font-weight: 600; color: var(--best); }
.query { margin-bottom: .8rem; } .query h3 { font-size: 1rem; margin: 0 0 .5rem; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.columns h4 { margin: 0 0 .2rem; font-size: .85rem; font-weight: 500; color: var(--soft); }
ol { margin: 0; padding-left: 1.3rem; } li { overflow-wrap: anywhere; }
li span { color: var(--soft); font-size: .85rem; }
pre { overflow-x: auto; margin: .6rem 0; padding: .8rem 1rem; background: var(--box); border: 1px solid var(--line);
  border-radius: 8px; font: 14px/1.5 ui-monospace, monospace; }
@media (max-width: 30rem) { .columns { grid-template-columns: 1fr; } }
"""


def render_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already; the title is escaped here."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def render_table(columns: Sequence[str], rows: Iterable[Mapping[str, str]], best: str = "") -> str:
    """A table of texts; the row whose first cell is `best` stands out."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns)
        kind = ' class="best"' if best and row.get(columns[0]) == best else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def with_code(text: str) -> str:
    """A sentence, its words in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
