"""Which of the passages that a query found are its hard negatives: pure functions on one query's ranking.

The ranks are those of tDRO (Ma et al. 2024); the margins those of NV-Retriever (Moreira et al. 2024): a passage
that scores as high as the positive is likely to be an answer that nobody marked.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Literal

import numpy as np


def candidates_in_window(ranking: np.ndarray, first: int, last: int, known_answers: Collection[int]) -> np.ndarray:
    """The ranks [first, last) of a ranking [k] of passages, without known answers and missing places (-1).

    Ranks count from 0 and before anything is left out. Returned are places in the ranking, in its order.
    """
    window = ranking[first:last]
    usable = (window >= 0) & ~np.isin(window, list(known_answers))
    return first + np.flatnonzero(usable)


def below_near_duplicates(candidates: np.ndarray, positives: np.ndarray, most: float) -> np.ndarray:
    """Whether the largest cosine of each candidate [n, d] with a positive [p, d] is `most` or less: [n]."""
    return (_unit(candidates) @ _unit(positives).T).max(axis=1) <= most


def below_margins(
    scores: np.ndarray, positive_scores: np.ndarray, absolute: float | None, relative: float | None
) -> np.ndarray:
    """Whether each candidate's score [n] keeps its distance from the lowest of the positives' scores [p]: [n].

    The relative margin is a share of the positive score's size, so that it means the same below zero.
    """
    positive = float(positive_scores.min())
    most = min(positive - (absolute or 0.0), positive - (relative or 0.0) * abs(positive))
    return scores <= most


def sample(count: int, wanted: int, how: Literal["random", "first"], rng: random.Random) -> list[int]:
    """Which of `count` candidates are taken, in their order: all where there are no more than wanted."""
    if count <= wanted:
        return list(range(count))
    return sorted(rng.sample(range(count), wanted)) if how == "random" else list(range(wanted))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
