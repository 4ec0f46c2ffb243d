"""Local data as tasks of mteb, without any hub: recognised by their shape."""

from __future__ import annotations

import os
from pathlib import Path

from ...data.retrieval import beir
from ...data.retrieval.entries import Entry
from ...hparams.suggestion import suggest
from ..revisions import name_of_data
from .answers import is_answers_folder, make_answers_task
from .labelled import make_classification_task, make_clustering_task, make_sts_task
from .reading import LocalTask, columns_of, is_label_folder
from .retrieval import make_beir_task, make_rows_task


KINDS = ("retrieval", "answers", "sts", "classification", "clustering")

__all__ = ["KINDS", "LocalTask", "load_entry", "load_path", "split_path"]


def split_path(word: str) -> tuple[str | None, str, str | None]:
    """`kind:path@split` → kind, path, split; both ends may be missing."""
    kind, colon, rest = word.partition(":")
    if not colon or "/" in kind or "\\" in kind or len(kind) < 2:  # a drive has one letter
        kind, rest = "", word
    if os.path.exists(rest):
        return kind or None, rest, None
    path, at, split = rest.rpartition("@")
    return kind or None, path if at else rest, split if at else None


def load_path(word: str) -> LocalTask:
    """The task of a file or folder."""
    kind, path, split = split_path(word)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"{word} begins with `{kind}:`, which is no kind of data{suggest(kind, KINDS)}")
    if not os.path.exists(path):
        raise ValueError(f"there is no file or folder {path}.")
    name = name_of_data(Path(path))
    kind = kind or kind_of(path)
    if kind == "answers":
        return make_answers_task(name, path, split)
    if kind == "classification":
        return make_classification_task(name, path)
    if kind == "clustering":
        return make_clustering_task(name, path)
    if kind == "sts":
        return make_sts_task(name, path)
    if beir.is_collection(path):
        return make_beir_task(name, path, split)
    return make_rows_task(Entry(name=name, location=path, task=name))


def load_entry(entry: Entry) -> LocalTask:
    """The task of an entry of `dataset_info.json`, with the instruction that it has there."""
    if entry.on_hub:
        raise ValueError(f"{entry.name} is on a hub; evaluation reads local files, or mteb's own tasks.")
    instruction = entry.instructions[0]
    if beir.is_collection(entry.location):
        return make_beir_task(entry.name, entry.location, entry.split, instruction, entry.symmetric)
    return make_rows_task(entry)


def kind_of(path: str) -> str:
    """What data hold, by their layout and their columns."""
    if beir.is_collection(path):
        return "retrieval"
    if is_answers_folder(path):
        return "answers"
    if is_label_folder(path):
        return "classification"
    columns = columns_of(path)
    if "text" in columns and "label" in columns:
        return "classification"
    if "text" in columns and "cluster" in columns:
        return "clustering"
    if "score" in columns and not any(name.startswith(("negative", "neg")) for name in columns):
        return "sts"
    return "retrieval"
