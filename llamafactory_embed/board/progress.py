"""One picture of a run that trains: its loss, what its evaluations measure, and the task weights of `tdro`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import EVALUATIONS_NAME


HOST_LOG = "trainer_log.jsonl"
TASK_WEIGHTS = "task_weights.jsonl"

# What is drawn of an evaluation, the first that it has: retrieval, a diffusion model's bound, words, masked tokens.
METRICS = {
    "eval_ndcg@10": "nDCG@10",
    "eval_bits_per_token": "bound (bits per token)",
    "eval_f1": "F1",
    "eval_accuracy": "accuracy",
    "eval_loss": "loss of the evaluation",
}

INK = "#8c8c8c"  # can be read on a light and on a dark page
LOSS_COLOUR, METRIC_COLOUR = "#1f77b4", "#e8710a"
SMOOTHING = 0.8  # share of the past in the smoothed loss
ROOM_FOR_THE_LABEL = 0.4  # inches; the page writes over the upper left corner of a picture
MOST_NAMES = 12  # of tasks in the legend

Points = list[tuple[int, float]]
"""Step and value."""


@dataclass(frozen=True)
class RunProgress:
    """What the files of a run say so far."""

    losses: Points
    metric: str
    values: Points
    weights: Mapping[str, Points]
    """Task → its weights."""

    @property
    def has_more_than_the_loss(self) -> bool:
        """Whether this picture shows more than the host's."""
        return bool(self.values or self.weights)


def read_progress(folder: str | Path) -> RunProgress:
    """Read the logs of a run, which may still be writing them."""
    log = _read_lines(Path(folder, HOST_LOG))
    evaluations = _read_lines(Path(folder, EVALUATIONS_NAME))
    key = next((key for key in METRICS if any(key in entry for entry in evaluations)), "")
    weights: dict[str, Points] = {}
    for entry in _read_lines(Path(folder, TASK_WEIGHTS)):
        for task, weight in entry["weight"].items():
            weights.setdefault(task, []).append((entry["step"], weight))
    return RunProgress(
        losses=[(entry["current_steps"], entry["loss"]) for entry in log if "loss" in entry],
        metric=METRICS.get(key, ""),
        values=[(entry["step"], entry[key]) for entry in evaluations if key in entry],
        weights=weights,
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; the last one may be half written."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def draw_progress(progress: RunProgress) -> Figure:
    """Loss (left) and metric (right) over the steps; below them the weights, if there are any."""
    height = 7.6 if progress.weights else 4.2
    figure = Figure(figsize=(4.6, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.set(rect=(0, 0, 1, 1 - ROOM_FOR_THE_LABEL / height))  # type: ignore[call-arg]
    figure.patch.set_alpha(0)
    parts = figure.subplots(2 if progress.weights else 1, squeeze=False)[:, 0]
    _draw_loss_and_metric(parts[0], progress)
    if progress.weights:
        _draw_weights(parts[1], progress.weights)
    return figure


def _draw_loss_and_metric(axes: Any, progress: RunProgress) -> None:
    lines = []
    if progress.losses:
        steps, losses = zip(*progress.losses, strict=True)
        axes.plot(steps, losses, color=LOSS_COLOUR, alpha=0.35, linewidth=1)
        lines += axes.plot(steps, smoothed(losses), color=LOSS_COLOUR, label="loss")
    _style(axes, "loss")
    if progress.values:
        right = axes.twinx()
        steps, values = zip(*progress.values, strict=True)
        lines += right.plot(steps, values, color=METRIC_COLOUR, marker="o", markersize=4, label=progress.metric)
        _style(right, progress.metric)
    if lines:
        axes.legend(
            lines, [line.get_label() for line in lines], loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2,
            frameon=False, labelcolor=INK, fontsize=9,
        )  # fmt: skip


def _draw_weights(axes: Any, weights: Mapping[str, Points]) -> None:
    heaviest_first = sorted(weights, key=lambda task: -weights[task][-1][1])
    for number, task in enumerate(heaviest_first):
        steps, values = zip(*weights[task], strict=True)
        axes.plot(steps, values, linewidth=1.4, label=task if number < MOST_NAMES else None)
    _style(axes, "weight of the task")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, labelcolor=INK, fontsize=8)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving averages. Each is divided by the sum of its weights, so that the start is no special case."""
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(total / weight)
    return means


def _style(axes: Any, name: str) -> None:
    axes.patch.set_alpha(0)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(name, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.5)
