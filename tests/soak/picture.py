"""The samples of a soak as one picture: a column for each work, a row for each measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .flat import WARM_UP, speed
from .samples import Sample


TITLES = {"train": "training", "encode": "encode", "mine": "mining", "serve": "serving"}
ROWS = {"memory": "memory, MiB", "handles": "file handles", "threads": "threads", "speed": "done per CPU second"}
POINTS = 60  # of the line of the speed


def draw(samples: Mapping[str, Sequence[Sample]], path: Path) -> None:
    """Write the picture; matplotlib comes with this package."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "soak"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(ROWS), len(samples), figsize=(3 * len(samples), 1.8 * len(ROWS)), sharex="col", squeeze=False
    )
    for column, (name, taken) in enumerate(samples.items()):
        for row, measure in enumerate(ROWS):
            plot = axes[row][column]
            plot.plot(*line_of(taken, measure), linewidth=1)
            plot.axvspan(0, WARM_UP * taken[-1].seconds / 60, alpha=0.12, color="gray", linewidth=0)
            plot.set_ylim(bottom=0)
            plot.margins(x=0)
            if column == 0:
                plot.set_ylabel(ROWS[measure])
        axes[0][column].set_title(TITLES[name])
        axes[-1][column].set_xlabel("minutes")
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def line_of(samples: Sequence[Sample], measure: str) -> tuple[list[float], list[float]]:
    """Minutes and values; the speed is that between samples some way apart."""
    if measure != "speed":
        return [each.seconds / 60 for each in samples], [getattr(each, measure) for each in samples]
    step = max(1, len(samples) // POINTS)
    windows = [samples[start : start + step + 1] for start in range(0, len(samples) - step, step)]
    return [window[-1].seconds / 60 for window in windows], [speed(window) for window in windows]
