"""Rows that name their texts by id, in files and on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.reader import load_tasks, tasks_of_entries
from llamafactory_embed.data.retrieval.stream import stream_tasks
from tests.data.retrieval.helpers import FILES, FOLDERS, json_lines, read_task, without_place


ROOT = Path(__file__).parents[3]
BY_ID = FOLDERS / "by_id"
REASONIR: dict[str, Any] = {"columns": {"positive_ids": "pos"}, "corpus": "bright_documents.jsonl"}


def documents() -> dict[str, str]:
    return {record["id"]: record["content"] for record in json_lines("bright_documents.jsonl")}


def test_the_positives_of_reasonir_are_looked_up_in_the_corpora_of_bright() -> None:
    rows = read_task("reasonir_hq.jsonl", **REASONIR).rows
    for row, record in zip(rows, json_lines("reasonir_hq.jsonl"), strict=True):
        assert row.query == record["query"][1]
        assert row.instruction == record["query"][0].removesuffix(".")
        assert row.positives == tuple(documents()[key] for _, key in record["pos"])
        assert row.negatives == tuple(text for _, text in record["neg"])


def test_a_corpus_on_the_hub_is_read_with_all_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    records = json_lines("bright_documents.jsonl")
    splits = {"biology": records[:2], "aops": records[2:]}
    asked = []

    def load_dataset(*words: Any, **settings: Any) -> Any:
        asked.append((*words, settings["split"]))
        return datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = {"hf_hub_url": "xlangai/BRIGHT", "subset": "documents"}
    rows = read_task("reasonir_hq.jsonl", **REASONIR | {"corpus": corpus}).rows
    assert set(asked) == {("xlangai/BRIGHT", "documents", None)}
    assert list(rows) == list(read_task("reasonir_hq.jsonl", **REASONIR).rows)


def test_queries_positives_and_negatives_can_be_ids() -> None:
    rows = read_task("triples.jsonl", BY_ID, corpus="corpus.jsonl", queries="queries.tsv").rows
    assert without_place(rows) == [
        ('what is a "kitten"', ("Kitten a young cat",), ("a dog", "a house"), None, None),
        ("what barks", ("a dog",), (), None, None),
    ]


def test_a_corpus_may_be_parquet_with_columns_of_other_names(tmp_path: Path) -> None:
    records = [
        {"pid": int(record["docid"]), "passage": record["text"]} for record in read_lines(BY_ID / "corpus.jsonl")
    ]
    datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "corpus.parquet"))
    corpus = {"file_name": str(tmp_path / "corpus.parquet"), "columns": {"id": "pid", "text": "passage"}}
    rows = read_task("triples.jsonl", BY_ID, corpus=corpus, queries="queries.tsv").rows
    assert [row.positives for row in rows] == [("a young cat",), ("a dog",)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"query_id": "2", "positive_ids": ["99"]}, r"`positive_ids` names `99`, which is not in .*corpus\.jsonl"),
        ({"query_id": "3", "positive_ids": ["10"]}, r"`query_id` names `3`, which is not in .*queries\.tsv"),
        ({"query_id": "2", "positive_ids": [None]}, "`positive_ids` must hold ids, not None"),
        ({"query_id": ["2"], "positive_ids": ["10"]}, r"`query_id` must hold ids, not \['2'\]"),
        ({"query_id": "2", "positive_ids": []}, "`positive` is empty"),
        ({"query_id": "2", "positive_ids": ["10"], "negative_ids": ["x"]}, "`negative_ids` names `x`"),
        ({"query_id": "2"}, "there is no column `positive`"),
    ],
)
def test_an_id_without_a_text_is_a_bad_row(tmp_path: Path, record: dict[str, Any], problem: str) -> None:
    good = {"query_id": "2", "positive_ids": ["10"]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    sources = {"corpus": str(BY_ID / "corpus.jsonl"), "queries": str(BY_ID / "queries.tsv")}
    with pytest.raises(ValueError, match=rf"has 1 bad rows;.*\n.*rows\.jsonl:2: {problem}"):
        read_task("rows.jsonl", tmp_path, **sources)
    entry = make_entry("it", {"file_name": "rows.jsonl", "formatting": "retrieval", **sources}, str(tmp_path))
    (task,) = tasks_of_entries([entry], None, True, 0, 42, HubOptions())
    assert [row.line for row in task.rows] == [1]


def test_a_named_column_of_ids_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "positive": "b"}')
    corpus = str(FILES / "bright_documents.jsonl")
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: there is no column `pos`, which `columns` names as `positive_ids`"
    ):
        read_task("rows.jsonl", tmp_path, corpus=corpus, columns={"positive_ids": "pos"})


def test_bad_lines_of_a_corpus_and_a_missing_one_are_told(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "10", "text": "a"}\n{"id": "11"}\n')
    (tmp_path / "queries.tsv").write_text("2\twhat barks\n3 no tab\n")
    with pytest.raises(ValueError, match="has 2 bad rows") as error:
        read_task("rows.jsonl", write_row(tmp_path), corpus="corpus.jsonl", queries="queries.tsv")
    assert "queries.tsv:2: every line is an id, a tab and a text" in str(error.value)
    assert "corpus.jsonl:2: every line is a JSON object with `_id` and `text`" in str(error.value)
    with pytest.raises(ValueError, match=r"`it: corpus`: there is no file or folder `.*nowhere\.jsonl`"):
        read_task("rows.jsonl", tmp_path, corpus="nowhere.jsonl")


def write_row(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text('{"query_id": "2", "positive_ids": ["10"]}\n')
    return folder


def test_ids_are_looked_up_in_streams(tmp_path: Path) -> None:
    info = {"it": {"file_name": "reasonir_hq.jsonl", "formatting": "retrieval", **REASONIR}}
    for name in ("reasonir_hq.jsonl", "bright_documents.jsonl"):
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (task,) = stream_tasks("it", str(tmp_path), num_negatives=1)
    assert without_place(task.open_rows()) == without_place(read_task("reasonir_hq.jsonl", **REASONIR).rows)


def test_the_samples_of_reasonir_that_the_recipes_name_are_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        ("reasonir/reasonir-data", "hq"): "reasonir_hq.jsonl",
        ("reasonir/reasonir-data", "vl"): "reasonir_vl.jsonl",
        ("xlangai/BRIGHT", "documents"): "bright_documents.jsonl",
    }

    def load_dataset(location: str, subset: str, *, split: str | None, **settings: Any) -> Any:
        data = datasets.Dataset.from_list(json_lines(files[location, subset]))
        return datasets.DatasetDict({"biology": data}) if split is None else data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (task,) = load_tasks("reasonir_hq_sample, reasonir_vl_sample", str(ROOT / "data"), num_negatives=1)
    assert task.name == "reasonir"
    assert len(task.rows) == 30_000
    published = [*read_task("reasonir_hq.jsonl", **REASONIR).rows, *read_task("reasonir_vl.jsonl").rows]
    assert set(without_place(task.rows)) == {
        (row.query, row.positives, row.negatives, row.scores, row.instruction) for row in published
    }
    whole = load_tasks("reasonir_hq, reasonir_vl[:1]", str(ROOT / "data"), num_negatives=1)
    assert without_place(whole[0].rows) == without_place(published[:3])
