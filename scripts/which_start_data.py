"""The data of which_start.py: short texts of three retrieval tasks, two to train on and one that no run sees.

- `qasc` (bigbench 1.0.0): question → the fact that answers it.
- `gloss` (bundled WordNet): definition → the noun that it defines.
- `vitaminc` (bigbench), held out: claim → the sentences of Wikipedia that support it.

bigbench's data carry a canary: they must not be published again, so nothing of them is kept in this repository.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdro_evidence_data import fetch, pair, part, read_bigbench, write_rows

from llamafactory_embed.files import write_json


GLOSSES = Path(__file__).parents[1] / "data" / "wordnet" / "gloss_to_noun.jsonl"
TRAINED = ("qasc", "gloss")
HELD_OUT = ("vitaminc",)


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
    glosses = [json.loads(line) for line in GLOSSES.read_text("utf-8").splitlines()]
    nouns = [(each["query"], each["positive"]) for each in glosses]
    tasks = read_bigbench(fetch("bigbench", packages))
    tasks["gloss"] = [pair(gloss, noun if isinstance(noun, str) else noun[0]) for gloss, noun in nouns]
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
