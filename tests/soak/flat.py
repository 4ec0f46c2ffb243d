"""Whether what a process holds, and how fast it is, stay the same for as long as it runs.

The first part warms up and is left out. The rest is cut into windows; through their medians goes the line whose slope
is the median of the slopes of all pairs of windows (Theil and Sen), which a garbage collection, a checkpoint or a
neighbour on the machine does not tilt. What that line gains or loses over the whole time is compared with what is
allowed. Speed is what was done in a second of the processor: seconds of a clock would measure the neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .samples import Sample


WARM_UP = 0.2  # share of the time that is left out
WINDOWS, FEWEST_WINDOWS = 24, 4


@dataclass(frozen=True)
class Measure:
    """A column of the samples that must stay as it is."""

    name: str
    unit: str
    of_window: Callable[[Sequence[Sample]], float]
    share: float
    """Change that is allowed, as a share of the level…"""
    count: float
    """… or in units, if that is more."""
    sign: int = 1
    """1 if it may not grow, -1 if it may not fall."""


@dataclass(frozen=True)
class Verdict:
    """One measure of one work."""

    measure: str
    unit: str
    level: float
    change: float
    """From the end of the warm-up to the end, along the line."""
    allowed: float
    is_flat: bool


def speed(window: Sequence[Sample]) -> float:
    """What was done in a second of the processor; a window without one says nothing."""
    cpu = window[-1].cpu - window[0].cpu
    return (window[-1].done - window[0].done) / cpu if cpu > 0 else float("nan")


def fewest_handles(window: Sequence[Sample]) -> float:
    """Of a server: what is open when fewest are connected. How many are depends on how fast the machine is at the
    time, and what is never closed is always there."""
    return float(min(each.handles for each in window))


def median_of(column: str) -> Callable[[Sequence[Sample]], float]:
    return lambda window: float(np.median([getattr(each, column) for each in window]))


MEASURES = (
    Measure("memory", "MiB", median_of("memory"), share=0.02, count=4),
    Measure("handles", "", median_of("handles"), share=0.02, count=2),
    Measure("threads", "", median_of("threads"), share=0.02, count=1),
    Measure("processes", "", median_of("processes"), share=0.0, count=1),
    Measure("speed", "per second of a core", speed, share=0.15, count=0, sign=-1),
)


def judge(samples: Sequence[Sample], has_clients: bool = False) -> list[Verdict]:
    """Each measure of one work. Connections of clients are handles, too."""
    windows = cut_into_windows(samples)
    measures = [
        replace(each, of_window=fewest_handles) if has_clients and each.name == "handles" else each
        for each in MEASURES
    ]
    return [judge_measure(measure, windows) for measure in measures]


def cut_into_windows(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """What comes after the warm-up, in windows that share their edges, so that none of the work falls between them."""
    kept = [each for each in samples if each.seconds >= WARM_UP * samples[-1].seconds]
    count = min(WINDOWS, (len(kept) - 1) // 2)
    if count < FEWEST_WINDOWS:
        raise ValueError(f"{len(samples)} samples are too few to say anything: let it run for longer.")
    edges = np.linspace(0, len(kept) - 1, count + 1).round().astype(int)
    return [kept[start : end + 1] for start, end in itertools.pairwise(edges)]


def judge_measure(measure: Measure, windows: Sequence[Sequence[Sample]]) -> Verdict:
    values = np.array([measure.of_window(window) for window in windows])
    middles = np.array([(window[0].seconds + window[-1].seconds) / 2 for window in windows])
    is_known = np.isfinite(values)
    slope = median_slope(middles[is_known], values[is_known])
    change = slope * (windows[-1][-1].seconds - windows[0][0].seconds)
    level = float(np.median(values[is_known]))
    allowed = max(measure.share * level, measure.count)
    is_flat = measure.sign * change <= allowed and (measure.sign > 0 or level > 0)  # of what stands still, no speed
    return Verdict(measure.name, measure.unit, level, change, allowed, is_flat)


def median_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the lines through all pairs of points."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
