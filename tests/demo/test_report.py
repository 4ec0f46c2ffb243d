"""The demo's page needs nothing but itself, and shows what it was given; its figures are those of other code."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llamafactory_embed.data.retrieval.evalset import RetrievalEval
from llamafactory_embed.demo.report import DemoOutcome, write_report
from llamafactory_embed.demo.results import METRICS, SampleQuery, bm25_metrics, table_lines
from llamafactory_embed.pages.drawing import bars, curve, round_ticks


ROWS = {
    "BM25, counting words": dict.fromkeys(METRICS, 0.128),
    "after 95 training steps": dict.fromkeys(METRICS, 0.249),
}


def outcome(folder: Path) -> DemoOutcome:
    return DemoOutcome(
        output=folder,
        command="llamafactory-cli train a.yaml max_steps=95",
        steps=95,
        seconds=290,
        rows=ROWS,
        before=[SampleQuery("t", "a <b>house</b>", [("<script>alert(1)</script>", 0.5)])],
        after=[SampleQuery("t", "a <b>house</b>", [("church & temple", 0.75)])],
        losses=[(1, 4.0), (50, 2.5), (95, 2.0)],
        remarks=["A step takes 2 s: `--minutes 9`."],
        machine="2 CPU cores",
    )


class Page(HTMLParser):
    """Collects tags that are left open, and addresses."""

    EMPTY = ("meta", "rect", "line", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open += [tag] if tag not in self.EMPTY else []
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src", "srcset", "data")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in self.EMPTY

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text = write_report(outcome(tmp_path)).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses == []
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert (
        re.findall(r"https?://[^\s\"]+", text) == ["http://www.w3.org/2000/svg"] * 2
    )  # names of a language, not fetched
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "a &lt;b&gt;house&lt;/b&gt;" in text
    assert "church &amp; temple" in text
    assert "<code>--minutes 9</code>" in text
    assert "prefers-color-scheme: dark" in text


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars({"a": 10.0, "b": 40.0}, "b")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', picture)]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)
    assert picture.count('class="bar best"') == 1


def test_the_curve_goes_through_its_points() -> None:
    picture = curve([(0, 4.0), (50, 3.0), (100, 2.0)], "step")
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]+)"', picture)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.1)
    assert y0 < y2  # down is down
    assert "Too few steps" in curve([(1, 2.0)], "step")


@pytest.mark.parametrize("span", [(0.0, 1.0), (2.03, 4.9), (0.001, 0.0042), (5.0, 5.0), (0.0, 1234.0)])
def test_ticks_are_round_and_few(span: tuple[float, float]) -> None:
    ticks = round_ticks(*span)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(len(f"{tick:g}") <= 6 for tick in ticks)


def test_the_table_is_in_percent() -> None:
    lines = table_lines(ROWS, "Finding")
    assert lines[2].split()[-4:] == ["24.9"] * 4
    assert len({len(line) for line in lines}) == 1


def test_bm25_finds_common_words_and_nothing_else() -> None:
    """The first query shares a rare word with its answer, the second shares none with any document."""
    task = RetrievalEval(
        task="t",
        queries=("a rare bird", "unheard"),
        query_instructions=("", ""),
        corpus=("a common thing", "the rare one", "a thing"),
        corpus_instruction="",
        relevant=(frozenset({1}), frozenset({0})),
    )
    assert bm25_metrics([task]) == dict.fromkeys(METRICS, 0.5)
