"""Texts with a label (classification, clustering) and pairs of sentences with a score (STS)."""

from __future__ import annotations

import math
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskSTS

from ...data.retrieval.formats import ROLES
from .reading import LocalTask, is_label_folder, make_task, read_fields, split_file


TEXT: dict[str, tuple[str, ...]] = {"text": ("text", "sentence")}
LABEL: dict[str, tuple[str, ...]] = {"label": ("label", "cluster")}
SENTENCES = {"sentence1": ("sentence1", *ROLES["query"]), "sentence2": ("sentence2", *ROLES["positive"])}
SCORE = {"score": ROLES["score"]}
FOLDS = 5
MOST_CLUSTERED = 16_384  # as mteb's own tasks


def make_classification_task(name: str, path: str) -> LocalTask:
    """A folder with `train` and `test`, or one file that is judged by cross-validation, as mteb does either."""
    if is_label_folder(path):
        splits = {split: read_labelled(split_file(path, split)) for split in ("train", "test")}
        new = sorted({label for _, label in splits["test"]} - {label for _, label in splits["train"]})
        if new:
            raise ValueError(f"{path}: the label {new[0]!r} is in `test` but not in `train`, so nothing can learn it.")
        attributes: dict[str, Any] = {}
        evaluated = "test"
    else:
        splits = {"train": read_labelled(path)}
        attributes = {"is_cross_validation": True, "n_splits": FOLDS}
        evaluated = "train"
        if len(splits["train"]) < 2 * FOLDS:
            raise ValueError(f"{path}: cross-validation in {FOLDS} parts needs at least {2 * FOLDS} rows.")
    numbers = {label: number for number, label in enumerate(sorted({label for _, label in splits["train"]}))}
    if len(numbers) < 2:
        raise ValueError(f"{path}: all rows have the same label, so there is nothing to tell apart.")
    data = DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [text for text, _ in rows], "label": [numbers[label] for _, label in rows]}
            )
            for split, rows in splits.items()
        }
    )
    return make_task(
        AbsTaskClassification,
        name,
        path,
        {"default": data},
        kind="Classification",
        main_score="accuracy",
        split=evaluated,
        **attributes,
    )


def make_clustering_task(name: str, path: str) -> LocalTask:
    """How well k-means finds the labels, over ten draws with replacement from all rows."""
    rows = read_labelled(path)
    if len({label for _, label in rows}) < 2:
        raise ValueError(f"{path}: all rows are of the same cluster, so there is nothing to find.")
    data = Dataset.from_dict({"sentences": [text for text, _ in rows], "labels": [label for _, label in rows]})
    return make_task(
        AbsTaskClustering,
        name,
        path,
        {"default": {"test": data}},
        kind="Clustering",
        main_score="v_measure",
        max_fraction_of_documents_to_embed=None,
        max_documents_per_cluster=min(MOST_CLUSTERED, len(rows)),
    )


def read_labelled(path: str | None) -> list[tuple[str, str]]:
    """Texts and labels of a file."""
    assert path is not None
    rows = [(str(row["text"]), str(row["label"])) for row in read_fields(path, TEXT | LABEL)]
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def make_sts_task(name: str, path: str) -> LocalTask:
    """Spearman's correlation between similarities and scores, of whatever range."""
    pairs = list(read_fields(path, SENTENCES | SCORE))
    try:
        scores = [float(pair["score"]) for pair in pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: every `score` must be a number ({error}).") from error
    if len(pairs) < 2 or min(scores) == max(scores) or not all(map(math.isfinite, scores)):
        raise ValueError(f"{path}: a correlation needs pairs with at least two different scores.")
    columns = {column: [str(pair[column]) for pair in pairs] for column in SENTENCES}
    dataset = {"default": {"test": Dataset.from_dict({**columns, "score": scores})}}
    bounds: dict[str, Any] = {"min_score": min(scores), "max_score": max(scores)}
    return make_task(AbsTaskSTS, name, path, dataset, kind="STS", main_score="spearman", **bounds)
