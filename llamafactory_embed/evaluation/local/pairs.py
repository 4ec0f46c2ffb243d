"""Pairs of sentences with a score of how similar they are."""

from __future__ import annotations

import math
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTaskSTS

from ...data.retrieval.formats import ROLES
from .reading import LocalTask, make_task, read_fields


FIELDS = {"sentence1": ("sentence1", *ROLES["query"]), "sentence2": ("sentence2", *ROLES["positive"])}
SCORE = {"score": ROLES["score"]}


def make_sts_task(name: str, path: str) -> LocalTask:
    """Spearman's correlation between similarities and scores, of whatever range."""
    pairs = list(read_fields(path, FIELDS | SCORE))
    try:
        scores = [float(pair["score"]) for pair in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: every `score` must be a number ({error}).") from error
    if len(pairs) < 2 or min(scores) == max(scores) or not all(map(math.isfinite, scores)):
        raise ValueError(f"{path}: a correlation needs pairs with at least two different scores.")
    columns = {column: [str(pair[column]) for pair in pairs] for column in FIELDS}
    dataset = {"default": {"test": Dataset.from_dict({**columns, "score": scores})}}
    bounds: dict[str, Any] = {"min_score": min(scores), "max_score": max(scores)}
    return make_task(AbsTaskSTS, name, path, dataset, kind="STS", main_score="spearman", **bounds)
