"""What people look at: a table, in the terminal and as files, and a picture if several models are compared."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import whole_file, write_text
from .tasks import LOCAL, ChosenTask


if TYPE_CHECKING:
    from mteb.results import TaskResult


MEAN = "mean"
MAIN, SECOND, SUBSET = "main score", "second score", "score of a subset"
MOST_TASKS_DRAWN = 60
DIGITS = 6  # as in mteb's files, so that a score is the same when its file is read again

# FollowIR's main score is p-MRR; its paper's second one is of the original instructions alone.
SECOND_SCORES = {
    "Robust04InstructionRetrieval": ("og", "map_at_1000"),
    "Core17InstructionRetrieval": ("og", "map_at_1000"),
    "News21InstructionRetrieval": ("og", "ndcg_at_5"),
}


@dataclass(frozen=True)
class Line:
    """A row of the table: one metric of one task, or a mean, for every model that was judged by it."""

    task: str
    metric: str
    group: str
    scores: dict[str, float]
    kind: str = MAIN


@dataclass
class Summary:
    """All results of a run."""

    models: list[str]
    lines: list[Line] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    compared_with: dict[str, str] = field(default_factory=dict)
    """For a model whose vectors are stored in fewer bytes, the same one in float32: the table shows what it loses."""

    def add(self, chosen: ChosenTask, model: str, result: TaskResult) -> None:
        """Enter the scores of a model on a task; `result` is mteb's."""
        self._enter(chosen, chosen.task.metadata.main_score, model, float(result.get_score()), MAIN)
        scores = [each for split in result.scores.values() for each in split]
        if chosen.name in SECOND_SCORES:
            part, metric = SECOND_SCORES[chosen.name]
            values = [each[part][metric] for each in scores]
            self._enter(chosen, f"{metric} ({part})", model, sum(values) / len(values), SECOND)
        second: str | None = getattr(chosen.task, "second_score", None)
        if second is not None:
            self._enter_second_scores(chosen, second, model, scores)

    def _enter_second_scores(
        self, chosen: ChosenTask, metric: str, model: str, scores: Sequence[Mapping[str, Any]]
    ) -> None:
        """The second score of a task and, where it has several subsets (MKQA's languages), of each of them. Results of
        earlier releases have no such score."""
        values = {each["hf_subset"]: float(each[metric]) for each in scores if metric in each}
        if values:
            self._enter(chosen, metric, model, sum(values.values()) / len(values), SECOND)
        if len(values) > 1:
            for subset, value in values.items():
                self._enter(chosen, f"{metric} ({subset})", model, value, SUBSET)

    def means(self) -> list[Line]:
        """Means over the tasks of each group, for the models that were run on all of them: for each metric, and over
        all main scores of a benchmark, as its leaderboard has it."""
        groups: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            groups.setdefault((line.group, line.kind), []).append(line)
        lines = []
        for (group, kind), members in groups.items():
            metrics = list(dict.fromkeys(line.metric for line in members))
            for metric in metrics:
                lines += self._mean([line for line in members if line.metric == metric], metric)
            if len(metrics) > 1 and group not in ("", LOCAL):
                lines += self._mean(members, kind)
        return lines

    def _mean(self, members: Sequence[Line], metric: str) -> list[Line]:
        scores = {
            model: sum(line.scores[model] for line in members) / len(members)
            for model in self.models
            if all(model in line.scores for line in members)
        }
        if len(members) < 2 or not scores:
            return []
        group = members[0].group
        title = f"{MEAN} of {len(members)}, {group}" if group else f"{MEAN} of {len(members)}"
        return [Line(title, metric, group, scores)]

    def _enter(self, chosen: ChosenTask, metric: str, model: str, score: float, kind: str) -> None:
        key = (chosen.name, metric)
        line = next((line for line in self.lines if (line.task, line.metric) == key), None)
        if line is None:
            line = Line(*key, chosen.group, {}, kind)
            self.lines.append(line)
        line.scores[model] = round(score, DIGITS)


def format_summary(summary: Summary) -> str:
    """Columns for the terminal; scores are shown times 100."""
    rows = [["task", "metric", *summary.models]]
    rows += [cells_of(line, summary) for line in [*summary.lines, *summary.means()]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        text.append("  ".join([*left, *right]).rstrip())
    return "\n".join(text)


def format_markdown(summary: Summary) -> str:
    """The same table for a page."""
    rows = [["task", "metric", *summary.models], ["---", "---", *["---:"] * len(summary.models)]]
    rows += [cells_of(line, summary) for line in [*summary.lines, *summary.means()]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def format_csv(summary: Summary) -> str:
    """The same table for spreadsheets, with scores between 0 and 1; empty where a model was not run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "metric", *summary.models])
    for line in [*summary.lines, *summary.means()]:
        writer.writerow([line.task, line.metric, *(line.scores.get(model, "") for model in summary.models)])
    return text.getvalue()


def cells_of(line: Line, summary: Summary) -> list[str]:
    """A line's cells; a dash where a model was not run."""
    return [line.task, line.metric, *(score_cell(line, model, summary) for model in summary.models)]


def score_cell(line: Line, model: str, summary: Summary) -> str:
    """A score, and how far it is from that of the same model in float32."""
    if model not in line.scores:
        return "-"
    score, other = line.scores[model], summary.compared_with.get(model)
    difference = f" ({100 * (score - line.scores[other]):+.2f})" if other in line.scores else ""
    return f"{100 * score:.2f}{difference}"


def write_summary(summary: Summary, folder: Path) -> list[Path]:
    """`summary.md`, `summary.csv` and `summary.json`, and `summary.png` where several models are compared."""
    values = {
        "models": summary.models,
        "scores": [
            {"task": line.task, "metric": line.metric, "group": line.group, "scores": line.scores}
            for line in [*summary.lines, *summary.means()]
        ],
        "failures": summary.failures,
    }
    texts = {
        "summary.md": format_markdown(summary),
        "summary.csv": format_csv(summary),
        "summary.json": json.dumps(values, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    written = [folder / name for name in texts]
    if len(summary.models) > 1 and summary.lines:
        written.append(draw_comparison(summary, folder / "summary.png"))
    return written


def draw_comparison(summary: Summary, path: Path) -> Path:
    """Bars for each task, one for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = (summary.means() + summary.lines)[:MOST_TASKS_DRAWN]
    height = 0.8 / len(summary.models)
    figure = Figure(figsize=(9, 1.2 + len(lines) * max(0.4, 0.2 * len(summary.models))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, model in enumerate(summary.models):
        drawn = [(place, line.scores[model]) for place, line in enumerate(lines) if model in line.scores]
        places = [place + (number + 0.5) * height - 0.4 for place, _ in drawn]
        bars = axes.barh(places, [100 * score for _, score in drawn], height, label=model)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(lines)), [f"{line.task}\n{line.metric}" for line in lines], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("score × 100")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return path
