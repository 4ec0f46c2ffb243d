"""Pictures of two models side by side: a map of the texts, and similarities of queries and documents. Their ground is
transparent and their letters are grey, so that they can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .comparison import Projection, Side, project


INK = "#8c8c8c"
COLOURS = ("#1f77b4", "#e8710a", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Zen Hei", "SimHei")
PAIRS_DRAWN = 12
LETTERS_OF_A_LABEL = 28


def draw_map(sides: Sequence[Side], method: Projection, names: tuple[str, str]) -> Figure:
    """Queries (crosses) and documents (dots) of each task in a colour of its own. `names` are those of queries and
    documents in the language of the page."""
    figure, all_axes = _figure(len(sides), height=5.6)
    for side, axes in zip(sides, all_axes, strict=True):
        vectors = torch.cat([part for each in side.tasks for part in (each.queries, each.documents)])
        places = project(vectors, method)
        start = 0
        for number, each in enumerate(side.tasks):
            middle, end = start + len(each.queries), start + len(each.queries) + len(each.documents)
            colour = COLOURS[number % len(COLOURS)]
            query_colour = colour if len(side.tasks) > 1 else COLOURS[1]
            title = f"{each.task.task}: " if len(side.tasks) > 1 else ""
            documents, queries = places[middle:end], places[start:middle]
            axes.scatter(*documents.T, s=14, color=colour, alpha=0.7, linewidths=0, label=title + names[1])
            axes.scatter(*queries.T, s=26, color=query_colour, marker="x", linewidths=1.1, label=title + names[0])
            start = end
        axes.set_title(side.name, color=INK, fontsize=11, wrap=True)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9, prop=_font(9)
    )
    return figure


def draw_similarities(sides: Sequence[Side], task: int) -> Figure:
    """The first queries of a task against their answers: a model that finds them has a bright diagonal."""
    queries, documents = sides[0].tasks[task].pairs(PAIRS_DRAWN)
    figure, all_axes = _figure(len(sides), height=1.6 + 0.36 * len(queries) + 1.6)
    matrices = [each.tasks[task].queries[queries] @ each.tasks[task].documents[documents].T for each in sides]
    for number, (side, axes, matrix) in enumerate(zip(sides, all_axes, matrices, strict=True)):
        image = axes.imshow(matrix.numpy(), cmap="viridis", aspect="auto")
        texts = side.tasks[task].task
        columns = [short(texts.corpus[place]) for place in documents]
        axes.set_xticks(range(len(documents)), columns, rotation=40, ha="right", font_properties=_font(8), color=INK)
        rows = [short(texts.queries[place]) for place in queries] if number == 0 else []
        axes.set_yticks(range(len(queries)) if rows else [], rows, font_properties=_font(8), color=INK)
        axes.set_title(side.name, color=INK, fontsize=11, wrap=True)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.ax.tick_params(colors=INK, labelsize=8)
        bar.outline.set_visible(False)
    return figure


def short(text: str) -> str:
    """A text as the label of a line."""
    text = " ".join(text.split()).replace("$", r"\$")  # matplotlib sets formulas between dollars
    return text if len(text) <= LETTERS_OF_A_LABEL else text[: LETTERS_OF_A_LABEL - 1].rstrip() + "…"


def _figure(columns: int, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(11, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    all_axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in all_axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
            spine.set_alpha(0.5)
    return figure, all_axes


def _font(size: float) -> font_manager.FontProperties:
    """Letters of the Board's languages, as far as the machine has them."""
    installed = set(font_manager.get_font_names())
    return font_manager.FontProperties(family=[name for name in FONTS if name in installed], size=size)
