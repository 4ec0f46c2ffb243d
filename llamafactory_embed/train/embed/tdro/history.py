"""Weights, losses and measures of the tasks, update by update; a picture and a table of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ....files import digest, whole_file, write_text
from .measure import UpdateMeasure
from .task_weights import TaskWeights


HISTORY_NAME = "task_weights.jsonl"

Entry = dict[str, Any]
"""`step`, `learning_rate`, and by task `weight`, `queries`, `loss`, `reference_loss`, `measure`; a task that had no
query in the update has a weight only."""

LOGGED = ("weight", "loss", "reference_loss", "measure")

PICTURE_NAME = "task_weights.png"
LINE_HEIGHT = 0.2  # inches of the picture for a task's name
RECENT = 100  # updates over which the table averages losses and measures


@dataclass
class WeightHistory:
    """An entry for each update, also appended to the file in `folder`, if there is a folder."""

    tasks: Sequence[str]
    folder: Path | None
    entries: list[Entry] = field(default_factory=list)
    _is_begun: bool = False

    def add(self, step: int, learning_rate: float, weights: Tensor, measure: UpdateMeasure) -> None:
        """Add an update."""
        present = (measure.counts > 0).tolist()

        def by_task(values: Tensor) -> dict[str, float]:
            numbers = zip(self.tasks, values.tolist(), present, strict=True)
            return {task: value for task, value, is_present in numbers if is_present}

        entry: Entry = {
            "step": step,
            "learning_rate": learning_rate,
            "weight": dict(zip(self.tasks, weights.tolist(), strict=True)),
            "queries": {task: int(count) for task, count in by_task(measure.counts).items()},
            "loss": by_task(measure.losses),
            "measure": by_task(measure.measures),
        }
        if measure.reference_losses is not None:
            entry["reference_loss"] = by_task(measure.reference_losses)
        self.entries.append(entry)
        if self.folder is not None:
            self._append(self.folder, entry)

    def _append(self, folder: Path, entry: Entry) -> None:
        if not self._is_begun:  # replace what an earlier run has left there
            folder.mkdir(parents=True, exist_ok=True)
            self.save(folder)
            self._is_begun = True
            return
        with (folder / HISTORY_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def save(self, folder: Path) -> None:
        """Write all entries."""
        write_text(folder / HISTORY_NAME, self._lines())

    def _lines(self) -> str:
        return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries)

    def check_sum(self) -> str:
        """Of the file that `save` writes."""
        return digest(self._lines(), size=16).hex()

    def load(self, folder: Path, updates: int, check_sum: str | None) -> None:
        """Go on from a checkpoint's entries, one for each of its updates. Checkpoints of earlier versions have no
        check sum."""
        path = folder / HISTORY_NAME
        try:
            text = path.read_text(encoding="utf-8")
            entries = [self._check_entry(json.loads(line)) for line in text.splitlines()]
            if check_sum not in (None, digest(text, size=16).hex()):
                raise ValueError("it has changed since it was written")
            if [entry["step"] for entry in entries] != list(range(1, updates + 1)):
                raise ValueError(f"its lines are not those of {updates} updates")
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}): go on from the checkpoint before.") from error
        self.entries = entries
        self._is_begun = False

    def _check_entry(self, entry: Any) -> Entry:
        """A line of a file as what loggers, table and picture read."""
        if not isinstance(entry, dict) or not entry.keys() >= {"step", "weight", "loss", "measure"}:
            raise ValueError("a line is no entry")
        by_task = [entry.get(name, {}) for name in LOGGED]
        if not all(isinstance(each, dict) for each in by_task) or entry["weight"].keys() != {*self.tasks}:
            raise ValueError("a line has other tasks")
        if not all(isinstance(number, (int, float)) for each in by_task for number in each.values()):
            raise ValueError("a line holds what is no number")
        return entry

    def means_after(self, step: int) -> dict[str, float]:
        """Means over the updates after a step under the names that loggers get (`loss/<task>`, …); of the weight, the
        latest value."""
        recent = list(itertools.takewhile(lambda entry: entry["step"] > step, reversed(self.entries)))
        if not recent:
            return {}
        means = {f"weight/{task}": recent[0]["weight"][task] for task in self.tasks}
        for name in LOGGED[1:]:
            for task in self.tasks:
                values = [entry[name][task] for entry in recent if task in entry.get(name, {})]
                if values:
                    means[f"{name}/{task}"] = sum(values) / len(values)
        return means


def draw_weights(path: Path, history: WeightHistory) -> None:
    """A line for each task, its name at the line's end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [entry["step"] for entry in history.entries]
    figure = Figure(figsize=(10, max(4.0, 0.28 * len(history.tasks))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = history.entries[-1]["weight"]
    heaviest_first = sorted(history.tasks, key=lambda task: -last[task])
    for task in heaviest_first:
        axes.plot(steps, [entry["weight"][task] for entry in history.entries], linewidth=1.4)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("weight of the task")
    axes.grid(alpha=0.3)
    axes.margins(x=0.0)

    bottom, top = axes.get_ylim()
    line_height = LINE_HEIGHT / figure.get_figheight() * (top - bottom)
    heights = spread([last[task] for task in heaviest_first], bottom, top, line_height)
    for task, height, line in zip(heaviest_first, heights, axes.lines, strict=True):
        axes.annotate(
            f"{task}  {last[task]:.3f}",
            xy=(steps[-1], last[task]),
            xytext=(1.02, (height - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color=line.get_color(),
            verticalalignment="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def spread(values: Sequence[float], bottom: float, top: float, line_height: float) -> list[float]:
    """Heights near the falling `values`, one line of text apart, or less where there is no room for that."""
    distance = min(line_height, (top - bottom) / len(values))
    heights: list[float] = []
    for number, value in enumerate(values):
        lowest = bottom + distance * (len(values) - number - 0.5)  # leaves room for those below
        highest = heights[-1] - distance if heights else top - distance / 2
        heights.append(min(max(value, lowest), highest))
    return heights


def closing_table(history: WeightHistory, sizes: Sequence[int], weights: TaskWeights, start: Sequence[float]) -> str:
    """The tasks, heaviest first, with what moved their weights."""
    recent = history.means_after(history.entries[-1]["step"] - RECENT)
    width = max(len("task"), *map(len, history.tasks))
    columns = ("rows", "loss", "reference", "measure", "start", "weight", "mean", "epochs")
    lines = [f"{'task':<{width}}" + "".join(f"{column:>11}" for column in columns)]
    all_rows = sum(sizes)
    order = weights.current.argsort(descending=True, stable=True).tolist()
    for number in order:
        task = history.tasks[number]
        averages = [recent.get(f"{name}/{task}") for name in ("loss", "reference_loss", "measure")]
        cells = [f"{value:>11.4f}" if value is not None else f"{'':>11}" for value in averages]
        weight = float(weights.current[number])
        lines.append(
            f"{task:<{width}}{sizes[number]:>11}{''.join(cells)}{start[number]:>11.4f}{weight:>11.4f}"
            f"{float(weights.mean[number]):>11.4f}{weight * all_rows / sizes[number]:>11.2f}"
        )
    updates = min(RECENT, len(history.entries))
    lines.append(f"loss, reference and measure: means of the last {updates} of {weights.updates} updates")
    return "\n".join(lines)
