"""docs/pictures/before-after.svg: one definition and the words nearest to it, before and after the demo's training.

The numbers are those of a run, in before-after.json beside it, which says of which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from llamafactory_embed.pages.drawing import svg
from tests.docs.site import DOCS


FACTS = DOCS / "pictures" / "before-after.json"
WIDTH, HEIGHT = 760, 306
STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #1f2328 } .quiet { fill: #656d76; font-size: 12px }
.head { font-weight: 600 } .panel { fill: #fff; stroke: #d0d7de } .bar { fill: #d0d7de } .right { fill: #e8590c }
text.right { font-weight: 600 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .quiet { fill: #8d96a0 } .panel { fill: #161b22; stroke: #30363d } .bar { fill: #3d444d }
.right { fill: #ff8c42 } }
</style>"""


def picture() -> str:
    """The picture, for light and dark pages."""
    facts = json.loads(FACTS.read_text("utf-8"))
    ranks = [f"{rank:,}" for rank in facts["rank"]]
    medians = [f"{rank:g}" for rank in facts["median_rank"]]
    ndcg = facts["ndcg"]
    lines = [
        STYLE,
        f'<rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8"/>',
        _text(24, 36, f"“{facts['query']}”", "head"),
        _text(24, 58, f"Which of {facts['words']:,} words is meant? Those nearest to the definition:", "quiet"),
        *_column(24, "The language model as it is", ranks[0], facts["before"]),
        *_column(396, f"After {facts['steps']} training steps on a CPU", ranks[1], facts["after"]),
        _text(
            24,
            284,
            f"300 held-out definitions: median rank {medians[0]} → {medians[1]} · "
            f"nDCG@10 of three such tasks {ndcg['before']} → {ndcg['after']} (BM25 {ndcg['BM25']})",
            "quiet",
        ),
    ]
    return svg(WIDTH, HEIGHT, lines, f"The right word moves from rank {ranks[0]} to rank {ranks[1]}") + "\n"


def _column(x: int, title: str, rank: str, words: Sequence[Any]) -> Iterator[str]:
    """Words with their cosines as bars; the right one stands out, and its rank is named."""
    yield _text(x, 92, title, "head")
    for row, (word, cosine, is_right) in enumerate(words):
        y = 106 + row * 28
        kind = "bar right" if is_right else "bar"
        yield f'<rect class="{kind}" x="{x}" y="{y}" width="{120 * cosine:.0f}" height="18" rx="3"/>'
        yield _text(x + 128, y + 14, word, "right" if is_right else "")
        yield _text(x + 330, y + 14, f"{cosine:.2f}", "quiet", "end")
    yield _text(x, 260, f"rank of the right word: {rank}", "right" if rank == "1" else "quiet")


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
