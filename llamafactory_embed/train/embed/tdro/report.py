"""What people look at after a run: the weights over time as a picture, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .history import WeightHistory
from .task_weights import TaskWeights


PICTURE_NAME = "task_weights.png"
LINE_HEIGHT = 0.2  # inches of the picture for a task's name
RECENT = 100  # updates over which the table averages losses and measures


def draw_weights(path: Path, history: WeightHistory) -> None:
    """A line a task, its name at the line's end."""
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
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def spread(values: Sequence[float], bottom: float, top: float, line_height: float) -> list[float]:
    """Heights near the falling `values`, one line of text apart (or less, where there is not so much room)."""
    distance = min(line_height, (top - bottom) / len(values))
    heights: list[float] = []
    for number, value in enumerate(values):
        lowest = bottom + distance * (len(values) - number - 0.5)  # leaves room for those below
        highest = heights[-1] - distance if heights else top - distance / 2
        heights.append(min(max(value, lowest), highest))
    return heights


def closing_table(history: WeightHistory, sizes: Sequence[int], weights: TaskWeights, start: Sequence[float]) -> str:
    """The tasks, the heaviest first, with what moved their weights."""
    recent = history.means_after(history.entries[-1]["step"] - RECENT)
    width = max(len("task"), *map(len, history.tasks))
    columns = ("rows", "loss", "reference", "measure", "start", "weight", "mean", "epochs")
    lines = [f"{'task':<{width}}" + "".join(f"{column:>11}" for column in columns)]
    rows_in_all = sum(sizes)
    order = weights.current.argsort(descending=True, stable=True).tolist()
    for number in order:
        task = history.tasks[number]
        measured = [recent.get(f"{name}/{task}") for name in ("loss", "reference_loss", "measure")]
        cells = [f"{value:>11.4f}" if value is not None else f"{'':>11}" for value in measured]
        weight = float(weights.current[number])
        lines.append(
            f"{task:<{width}}{sizes[number]:>11}{''.join(cells)}{start[number]:>11.4f}{weight:>11.4f}"
            f"{float(weights.mean[number]):>11.4f}{weight * rows_in_all / sizes[number]:>11.2f}"
        )
    updates = min(RECENT, len(history.entries))
    lines.append(f"loss, reference and measure: means of the last {updates} of {weights.updates} updates")
    return "\n".join(lines)
