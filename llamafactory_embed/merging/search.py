"""Weights chosen by what the merged checkpoint achieves.

Two checkpoints: a line of weights, then a finer one around the best. More: the greedy soup of Wortsman et al. 2022,
which takes checkpoints from the best to the worst and keeps one if the mean with it is at least as good.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .merge import write_merged
from .options import Method
from .plan import Merge


Judge = Callable[[Path], float]
"""The score of a checkpoint; more is better."""

LINE = (0.0, 0.25, 0.5, 0.75, 1.0)  # the second checkpoint's weight
FINER = 0.125


def search_weights(
    checkpoints: Sequence[Path], method: Method, full: bool, judge: Judge, report: Callable[[str], None]
) -> tuple[list[float], float]:
    """The best weights that were tried, and their score. Those of a single checkpoint are among them, so that a merge
    is never worse than its best part on what it was chosen by."""
    scores: dict[tuple[float, ...], float] = {}

    def score(weights: Sequence[float]) -> float:
        key = tuple(weights)
        if key not in scores:
            chosen = [index for index, weight in enumerate(weights) if weight > 0]
            if len(chosen) == 1:
                scores[key] = judge(checkpoints[chosen[0]])
            else:
                merge = Merge.of(checkpoints, weights, method, full)
                with tempfile.TemporaryDirectory(prefix="merging-") as folder:
                    write_merged(merge, Path(folder))
                    scores[key] = judge(Path(folder))
            report(f"{', '.join(f'{weight:.3f}' for weight in weights)}: {scores[key]:.4f}")
        return scores[key]

    best = _line(score) if len(checkpoints) == 2 else _greedy_soup(len(checkpoints), score)
    return best, scores[tuple(best)]


def _line(score: Callable[[Sequence[float]], float]) -> list[float]:
    best = max(LINE, key=lambda t: score([1 - t, t]))
    around = [t for t in (best - FINER, best, best + FINER) if 0 <= t <= 1]
    best = max(around, key=lambda t: score([1 - t, t]))
    return [1 - best, best]


def _greedy_soup(count: int, score: Callable[[Sequence[float]], float]) -> list[float]:
    def uniform(members: Sequence[int]) -> list[float]:
        return [1 / len(members) if index in members else 0.0 for index in range(count)]

    by_score = sorted(range(count), key=lambda index: -score(uniform([index])))
    soup = by_score[:1]
    for index in by_score[1:]:
        if score(uniform([*soup, index])) >= score(uniform(soup)):
            soup.append(index)
    return uniform(soup)
