"""What answers a query anywhere in the data is no negative of that query, and ids stand for one passage each."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from .helpers import as_list, mined, own_corpus, write_lines


pytest.importorskip("faiss")

EVERYTHING: dict[str, Any] = {"ranks": "0:1000", "num_negatives": 1000}


def negatives_by_query(rows: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Rows that ask the same query must have the same negatives."""
    negatives: dict[str, set[str]] = {}
    for row in rows:
        assert negatives.setdefault(row["query"], set(row["negative"])) == set(row["negative"])
    return negatives


def test_positives_of_other_rows_that_ask_the_same(checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        {"query": f"the question of number {number}", "positive": f"answer {answer} to number {number}"}
        for answer in range(3)
        for number in range(9)
    ]
    rows.append({"query": "The Question\tof  number 3", "positive": "a fourth answer to number 3"})
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    found = mined(tmp_path, model=checkpoint, data=data, **EVERYTHING)  # in chunks of 16 rows
    answers = defaultdict(set)
    for row in rows:
        answers[" ".join(row["query"].lower().split())].add(row["positive"])
    assert [row["positive"] for row in found] == [row["positive"] for row in rows]
    for row in found:
        expected = set(own_corpus(rows)) - answers[" ".join(row["query"].lower().split())]
        assert set(row["negative"]) == expected
    dropped = json.loads((tmp_path / "mined.summary.json").read_text("utf-8"))["candidates dropped"]
    assert dropped["known answers"] == 8 * 3 * 3 + 4 * 4


def test_another_instruction_makes_another_query(checkpoint: Path, tmp_path: Path) -> None:
    """As in evaluation; an instruction that a row repeats from its data set is not another one."""
    rows = [
        {"query": "far away", "positive": "a place"},
        {"query": "far away", "positive": "a region", "instruction": "Find places"},
        {"query": "far away", "positive": "a song", "instruction": "Find songs"},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    entry = {"file_name": "rows.jsonl", "formatting": "retrieval", "instruction": "Find places"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}), "utf-8")
    found = mined(tmp_path, model=checkpoint, data="rows", dataset_dir=tmp_path, **EVERYTHING)
    assert [set(row["negative"]) for row in found] == [{"a song"}, {"a song"}, {"a place", "a region"}]


def test_positives_of_other_rows_by_their_id(checkpoint: Path, tmp_path: Path) -> None:
    texts = {"7": "the old mill, revised edition", "8": "the new mill", "9": "copper"}
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"docid": key, "text": text} for key, text in texts.items()])
    rows = [
        {"query": "which mill", "positive_passages": [{"docid": "7", "text": "the old mill"}]},
        {"query": "which mill", "positive_passages": [{"text": "the new mill"}]},
        {"query": "which metal", "positive_passages": [{"docid": "9", "text": "copper"}]},
    ]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    found = mined(tmp_path, model=checkpoint, data=data, corpus=corpus, **EVERYTHING)
    assert negatives_by_query(found) == {"which mill": {"copper"}, "which metal": {texts["7"], texts["8"]}}


def test_premises_that_do_not_follow_each_other(checkpoint: Path, tmp_path: Path) -> None:
    with open(tmp_path / "nli.csv", "w", encoding="utf-8", newline="") as file:
        rows = [
            ("a man cooks", "someone cooks", 0),
            ("a dog runs", "an animal moves", 0),
            ("a man cooks", "he eats", 2),
            ("a man cooks", "food is made", 0),
            ("a dog runs", "a dog sleeps", 2),
        ]
        csv.writer(file).writerows([("premise", "hypothesis", "label"), *rows])
    found = mined(tmp_path, model=checkpoint, data=tmp_path / "nli.csv", **EVERYTHING)
    assert [row["positive"] for row in found] == ["someone cooks", "an animal moves", "food is made"]
    assert negatives_by_query(found) == {
        "a man cooks": {"an animal moves", "he eats"},
        "a dog runs": {"someone cooks", "he eats", "food is made"},
    }


def test_queries_of_a_collection_that_are_the_same_text(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{number}", "text": f"passage {number}"} for number in range(4)])
    write_lines(folder / "queries.jsonl", [{"_id": key, "text": "which"} for key in ("q0", "q1")])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\n", "utf-8")
    found = mined(tmp_path, model=checkpoint, data=folder, **EVERYTHING)
    assert [row["positive"] for row in found] == ["passage 0", "passage 2"]
    assert negatives_by_query(found) == {"which": {"passage 1", "passage 3"}}


def test_the_instructions_of_a_collection_take_turns(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{number}", "text": f"passage {number}"} for number in range(4)])
    write_lines(folder / "queries.jsonl", [{"_id": key, "text": f"which {key}"} for key in ("q0", "q1", "q2")])
    judgements = "".join(f"q{number}\td{number}\t1\n" for number in range(3))
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}", "utf-8")
    entry = {"file_name": "beir", "formatting": "retrieval", "instruction": ["Find", "Search"]}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}), "utf-8")
    found = mined(tmp_path, model=checkpoint, data="rows", dataset_dir=tmp_path, split="train", **EVERYTHING)
    assert [row["instruction"] for row in found] == ["Find", "Search", "Find"]


@pytest.mark.parametrize("ids_of", ["corpus", "rows"])
def test_an_id_stands_for_one_passage(ids_of: str, checkpoint: Path, tmp_path: Path) -> None:
    """The ids of the data are numbers that passages without an id would get, too; null is no id."""
    texts = ["copper", "tin", "lead", "iron", "zinc", "gold"]
    given = {0: "1", 2: "4", 3: "_1", 5: "3"}
    if ids_of == "corpus":
        passages: list[dict[str, Any]] = [{"text": text, "docid": given.get(n)} for n, text in enumerate(texts)]
        passages[4].pop("docid")
        corpus = {"corpus": write_lines(tmp_path / "corpus.jsonl", passages)}
        rows: list[dict[str, Any]] = [{"query": f"which {text}", "positive": text} for text in texts]
    else:
        corpus = {}
        rows = [
            {"query": f"which {text}", "positive_passages": [{"text": text, "docid": given.get(number)}]}
            for number, text in enumerate(texts)
        ]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    found = mined(tmp_path, model=checkpoint, data=data, format="tdro", **corpus, **EVERYTHING)
    texts_of = defaultdict(set)
    for row in found:
        assert len(row["negative_passages"]) == len(texts) - 1
        for passage in [*row["positive_passages"], *row["negative_passages"]]:
            texts_of[passage["docid"]].add(passage["text"])
    assert sorted(map(as_list, texts_of.values())) == sorted([text] for text in texts)
    assert {key: texts_of[key] for key in given.values()} == {key: {texts[n]} for n, key in given.items()}
