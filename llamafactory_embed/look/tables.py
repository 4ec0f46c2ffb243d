"""Rankings of two models side by side, as HTML in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .comparison import RankedText


GOLD = "★"
CELL = "padding:4px 8px;border:0;border-bottom:1px solid var(--border-color-primary);vertical-align:top;"
TABLE = "width:100%;border-collapse:collapse;border:0;"
NUMBER = CELL + "text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;"
TEXT = CELL + "text-align:left;overflow-wrap:anywhere;width:100%;"
ANSWER = "background:rgba(46,160,67,0.18);"


def side_by_side(columns: Mapping[str, Sequence[RankedText]], empty: str) -> str:
    """A table for each model: rank, mark of an answer, score, text."""
    tables = "".join(_table(name, ranking, empty) for name, ranking in columns.items())
    return f'<div style="display:flex;flex-wrap:wrap;gap:16px;">{tables}</div>'


def _table(name: str, ranking: Sequence[RankedText], empty: str) -> str:
    has_marks = any(each.is_answer for each in ranking)

    def mark(each: RankedText) -> str:
        return f'<td style="{NUMBER}">{GOLD if each.is_answer else ""}</td>' if has_marks else ""

    rows = "".join(
        f'<tr class="ranked" style="border:0;{ANSWER if each.is_answer else ""}"><td style="{NUMBER}">{rank}</td>'
        f'{mark(each)}<td style="{NUMBER}">{each.score:.3f}</td>'
        f'<td style="{TEXT}">{escape(each.text)}</td></tr>'
        for rank, each in enumerate(ranking, start=1)
    )
    body = f'<table style="{TABLE}">{rows}</table>' if rows else escape(empty)
    title = f'<div style="font-weight:600;margin-bottom:4px;overflow-wrap:anywhere;">{escape(name)}</div>'
    return f'<div class="ranking" style="flex:1 1 380px;min-width:0;">{title}{body}</div>'


def metrics_table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Task → model → metric → value, times 100; the better model's numbers are bold."""
    rows: list[str] = []
    for task, by_model in metrics.items():
        names = list(next(iter(by_model.values()), {}))
        if names and not rows:
            heads = "".join(f'<th style="{NUMBER}">{escape(name)}</th>' for name in names)
            rows.append(f'<tr style="border:0;"><th style="{CELL}"></th><th style="{CELL}"></th>{heads}</tr>')
        best = {name: max(values[name] for values in by_model.values()) for name in names}
        for model, values in by_model.items() if names else ():
            cells = "".join(
                f'<td style="{NUMBER}{"font-weight:600;" if values[name] == best[name] else ""}">'
                f"{100 * values[name]:.1f}</td>"
                for name in names
            )
            texts = "".join(f'<td style="{CELL}overflow-wrap:anywhere;">{escape(text)}</td>' for text in (task, model))
            rows.append(f'<tr class="judged" style="border:0;">{texts}{cells}</tr>')
    return f'<table style="{TABLE}">{"".join(rows)}</table>' if rows else ""
