"""Folders in BEIR's layout: rows, the whole corpus, and what is missing or broken in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.reader import load_tasks, tasks_of_entries
from llamafactory_embed.data.retrieval.stream import stream_tasks
from llamafactory_embed.train.embed.tasks import hold_out, split_tasks
from tests.data.retrieval.helpers import FOLDERS, read_task, without_place


def test_a_beir_folder_gives_its_judged_queries_and_the_whole_corpus(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "T", "text": "one"}\n{"_id": "2", "text": "two"}\n{"_id": "3", "text": "three"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "A"}\n{"_id": "b", "text": "B"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\t2\t1\nb\t1\t2\nb\t3\t0\n")
    task = read_task(".", tmp_path)
    assert without_place(task.rows) == [("B", ("two", "T one"), (), None, None)]
    material = build_retrieval_eval(task)
    assert material.queries == ("B",)
    assert set(material.corpus) == {"T one", "two", "three"}
    assert {material.corpus[place] for place in material.relevant[0]} == {"two", "T one"}
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\t9\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv:2: `9` is judged but is not in corpus\.jsonl"):
        read_task(".", tmp_path)
    with pytest.raises(ValueError, match="has no judgements for `dev`; it has test"):
        read_task(".", tmp_path, split="dev")


def write_collection(folder: Path, size: int, queries: int | None = None) -> Path:
    """Query n is answered by passage n; every third passage has a title."""
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"d{n}", "text": f"passage {n}"} | ({"title": f"title {n}"} if n % 3 == 0 else {}) for n in range(size)
    ]
    asked = range(size if queries is None else queries)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{n}", "text": f"query {n}"}) for n in asked))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in asked)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return folder


def text_of_passage(number: int) -> str:
    return f"title {number} passage {number}" if number % 3 == 0 else f"passage {number}"


def register(folder: Path, **settings: Any) -> str:
    entry = {"file_name": "beir", "formatting": "retrieval", **settings}
    (folder / "dataset_info.json").write_text(json.dumps({"collection": entry}))
    return str(folder)


WHOLE_CORPUS = {text_of_passage(number) for number in range(40)}


@pytest.mark.parametrize(
    ("settings", "max_samples", "queries"), [({}, None, 40), ({}, 5, 5), ({"num_samples": 7}, None, 7)]
)
def test_limits_leave_the_whole_corpus(
    settings: dict[str, Any], max_samples: int | None, queries: int, tmp_path: Path
) -> None:
    write_collection(tmp_path / "beir", 40)
    (task,) = load_tasks("collection", register(tmp_path, **settings), max_samples=max_samples)
    material = build_retrieval_eval(task)
    assert len(material.queries) == queries
    assert set(material.corpus) == WHOLE_CORPUS
    assert len(material.corpus) == 40


def test_rows_that_are_held_out_are_searched_in_the_whole_corpus(tmp_path: Path) -> None:
    write_collection(tmp_path / "beir", 40)
    train, held_out = split_tasks(load_tasks("collection", register(tmp_path)), 0.1, seed=3)
    assert len(train[0].rows) == 36
    material = build_retrieval_eval(held_out[0])
    assert len(material.queries) == 4
    assert set(material.corpus) == WHOLE_CORPUS


def test_joined_collections_are_searched_together(tmp_path: Path) -> None:
    write_collection(tmp_path / "one", 4)
    write_collection(tmp_path / "two", 40, queries=2)
    entries = [
        make_entry(name, {"file_name": name, "formatting": "retrieval", "task": "both"}, str(tmp_path))
        for name in ("one", "two")
    ]
    (task,) = tasks_of_entries(entries, 1, False, 0, 42, HubOptions())
    assert len(task.rows) == 2
    assert set(build_retrieval_eval(task).corpus) == WHOLE_CORPUS


def test_a_streamed_collection_gives_the_same_rows_and_the_whole_corpus(tmp_path: Path) -> None:
    write_collection(tmp_path / "beir", 40, queries=10)
    folder = register(tmp_path)
    (held,), (streamed,) = load_tasks("collection", folder), stream_tasks("collection", folder)
    assert list(streamed.open_rows()) == list(held.rows)
    assert held.rows[3].positives == ("title 3 passage 3",)
    material = build_retrieval_eval(hold_out(streamed, 2))
    assert len(material.queries) == 2
    assert set(material.corpus) == WHOLE_CORPUS


def test_instructions_take_turns_over_judged_queries(tmp_path: Path) -> None:
    write_collection(tmp_path / "beir", 5)
    (task,) = load_tasks("collection", register(tmp_path, instruction=["A", "B"]))
    assert [row.instruction for row in task.rows] == ["A", "B", "A", "B", "A"]


def test_texts_that_are_missing_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "beir", 5)
    with open(folder / "qrels" / "test.tsv", "a") as file:
        file.write("\nq1\td1\t0\nq1\td8\t0\nq9\td9\t1\nq9\td8\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv:8: `d8` is judged but is not in corpus\.jsonl") as error:
        load_tasks("collection", register(tmp_path))
    assert "2 of ids that are not in queries.jsonl (q9) and 3 of ids that are not in corpus.jsonl (d8, d9)" in str(
        error.value
    )


def test_bad_texts_of_a_collection_are_bad_rows(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "beir", 5)
    corpus = (folder / "corpus.jsonl").read_text().splitlines()
    corpus[1] = json.dumps({"_id": "d1", "text": "half \ud83d an emoji"})
    corpus[2] = json.dumps({"_id": "d2", "text": None})
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    registry = register(tmp_path)
    with pytest.raises(ValueError, match="has 2 bad rows") as error:
        load_tasks("collection", registry)
    assert "corpus.jsonl:2: `text` holds half a character (U+D83D at position 5)" in str(error.value)
    assert "corpus.jsonl:3: every line is a JSON object with `_id` and `text`" in str(error.value)
    (task,) = load_tasks("collection", registry, skip_bad_rows=True)
    assert [row.query for row in task.rows] == ["query 0", "query 3", "query 4"]


def test_miracl_as_published_is_a_collection() -> None:
    task = read_task("miracl-v1.0-de", FOLDERS, split="dev")
    assert without_place(task.rows) == [
        ('Wo endet die "Donau"?', ("Donau Die Donau endet im Schwarzen Meer.",), (), None, None),
        ("Welcher Berg raucht?", ("Ätna Der Ätna raucht.",), (), None, None),
    ]
    assert [row.where for row in task.rows] == [
        str(FOLDERS / f"miracl-v1.0-de/topics/topics.miracl-v1.0-de-dev.tsv:{line}") for line in (1, 2)
    ]
    assert tuple(task.corpus) == ("Donau Die Donau endet im Schwarzen Meer.", "Ätna Der Ätna raucht.")
    with pytest.raises(ValueError, match="has no judgements for `test-a`; it has dev"):
        read_task("miracl-v1.0-de", FOLDERS, split="test-a")


def test_topics_and_judgements_of_miracl_are_told_by_line(tmp_path: Path) -> None:
    folder = tmp_path / "miracl-v1.0-de"
    shutil.copytree(FOLDERS / "miracl-v1.0-de", folder)
    topics = folder / "topics" / "topics.miracl-v1.0-de-dev.tsv"
    topics.write_text("0#0\tWo?\n1#0\n")
    with pytest.raises(ValueError, match=r"de-dev\.tsv:2: every line is an id, a tab and a text"):
        read_task("miracl-v1.0-de", tmp_path, split="dev")
    topics.write_text("0#0\tWo?\n")
    with pytest.raises(ValueError, match=r"qrels.*:3: `1#0` is judged but is not in topics\.miracl-v1\.0-de-dev\.tsv"):
        read_task("miracl-v1.0-de", tmp_path, split="dev")
    topics.unlink()
    with pytest.raises(ValueError, match="has no topics for `dev`; it has test-a"):
        read_task("miracl-v1.0-de", tmp_path, split="dev")
