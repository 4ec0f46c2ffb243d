"""Sources, errors with file and line, joining and limiting of retrieval data."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from llamafactory_embed.data.files import HubOptions
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.reader import load_tasks, tasks_of_entries
from llamafactory_embed.data.retrieval.rows import Row, Task
from llamafactory_embed.data.retrieval.stream import stream_tasks

from .test_formats import FILES, json_lines, read_task, without_place


BROKEN_LINES = (2, 3, 4, 5, 6, 7, 8, 9)


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    records = [
        {**record, "positive": [record["positive"]] if isinstance(record["positive"], str) else record["positive"]}
        for record in json_lines("triples.jsonl")
    ]
    table = datasets.Dataset.from_list(records)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    shutil.copy(next((tmp_path / "saved").glob("*.arrow")), tmp_path / "rows.arrow")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write((FILES / "triples.jsonl").read_bytes())
    expected = without_place(read_task("triples.jsonl").rows)
    assert expected
    assert without_place(read_task("triples.json").rows) == expected
    for name in ("rows.parquet", "rows.arrow", "saved", "rows.jsonl.gz"):
        assert without_place(read_task(name, tmp_path).rows) == expected, name


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    shutil.copy(FILES / "pairs.jsonl", tmp_path / "b.jsonl")
    shutil.copy(FILES / "triples.jsonl", tmp_path / "a.jsonl")
    shutil.copy(FILES / "README.md", tmp_path / "README.md")
    expected = without_place(read_task("triples.jsonl").rows) + without_place(read_task("pairs.jsonl").rows)
    assert without_place(read_task(".", tmp_path).rows) == expected


def test_rows_know_their_file_and_line() -> None:
    lines = (FILES / "triples.jsonl").read_text(encoding="utf-8").splitlines()
    for row in read_task("triples.jsonl").rows:
        assert json.loads(lines[row.line - 1])["query"] == row.query
    # an element of an indented array begins on the line of its brace; a quoted cell may span lines
    lines = (FILES / "triples.json").read_text(encoding="utf-8").splitlines()
    for row in read_task("triples.json").rows:
        assert lines[row.line - 1].strip() == "{"
        assert row.query in lines[row.line]
    lines = (FILES / "nli_numbers.csv").read_text(encoding="utf-8").splitlines()
    rows = read_task("nli_numbers.csv").rows
    for row in rows:
        assert lines[row.line - 1].strip('"').startswith(row.query.split("\n")[0])
    assert any("\n" in row.query for row in rows), "the file should have a cell of two lines"


def test_all_bad_rows_are_told_at_once_with_known_columns() -> None:
    with pytest.raises(ValueError, match="has 8 bad rows") as error:
        read_task("broken.jsonl")
    message = str(error.value)
    told = [line.strip() for line in message.splitlines()[1:-1]]
    assert [line.split(": ")[0] for line in told] == [f"{FILES / 'broken.jsonl'}:{line}" for line in BROKEN_LINES]
    assert "`skip_bad_rows: true`" in message
    assert "`positive_passages`" in message.splitlines()[-1]
    assert "this is not JSON" in told[4]
    assert "not a JSON object" in told[6]


def test_bad_rows_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    entry = make_entry("it", {"file_name": "broken.jsonl", "formatting": "retrieval"}, str(FILES))
    with caplog.at_level(logging.WARNING):
        (task,) = tasks_of_entries([entry], None, True, 0, 42, HubOptions())
    good = [line for line in range(1, 11) if line not in BROKEN_LINES]
    assert [row.line for row in task.rows] == good
    assert "8 bad rows were skipped" in caplog.text


def test_no_more_than_twenty_bad_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "a", "postive": "b"}\n' * 50)
    with pytest.raises(ValueError, match="reading stopped there") as error:
        read_task("bad.jsonl", tmp_path)
    assert str(error.value).count("bad.jsonl:") == 20


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jsonl", "\n", "has no rows"),
        ("table.xlsx", "x", "is of no known type; known types are .jsonl"),
        (
            "array.json",
            '[{"query": "a", "positive": "b"},\n {"query": "a" "positive"}]',
            r"array\.json:2: this is not",
        ),
        ("cells.csv", "query,positive\na,b,c\n", r"cells\.csv:2: this row has 3 cells, the header has 2"),
        ("quote.csv", 'query,positive\na,"b\n', r"quote\.csv:2: this is not a table"),
        ("latin.txt", "caf\xe9", "is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=problem):
        read_task(name, tmp_path)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file `.*nowhere\.jsonl`"):
        read_task("nowhere.jsonl", tmp_path)
    with pytest.raises(ValueError, match="has no data file"):
        read_task(".", tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"formatting": "alpaca", "file_name": "a"}, "has `formatting: alpaca`; this stage reads `retrieval`"),
        ({"file_name": "a", "instuction": "x"}, "key `instuction` is not known; did you mean `instruction`"),
        ({"file_name": "a", "columns": {"postive": "b"}}, "did you mean `positive`"),
        ({"file_name": "a", "symmetric": "yes"}, "`symmetric` must be true or false"),
        ({"file_name": "a", "instruction": [1]}, "`instruction` must be text"),
        ({"ms_hub_url": "a"}, "needs `file_name` or `hf_hub_url`"),
    ],
)
def test_entries_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_entry("it", {"formatting": "retrieval", **settings}, "data")


def test_rows_without_negatives_among_others_are_bad_when_negatives_are_wanted(tmp_path: Path) -> None:
    lines = ['{"query": "a", "positive": "b", "negative": "c"}', '{"query": "d", "positive": "e"}']
    (tmp_path / "uneven.jsonl").write_text("\n".join(lines))
    entry = make_entry("it", {"file_name": "uneven.jsonl", "formatting": "retrieval"}, str(tmp_path))
    assert len(tasks_of_entries([entry], None, False, 0, 42, HubOptions())[0].rows) == 2
    with pytest.raises(ValueError, match=r"uneven\.jsonl:2: this row has no negatives .* `num_negatives` is not 0"):
        tasks_of_entries([entry], None, False, 1, 42, HubOptions())
    (task,) = tasks_of_entries([entry], None, True, 1, 42, HubOptions())
    assert [row.query for row in task.rows] == ["a"]


def write_registry(folder: Path, entries: dict[str, Any]) -> str:
    for file in FILES.iterdir():
        shutil.copy(file, folder)
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return str(folder)


def test_data_sets_of_one_task_are_joined_and_keep_their_instructions(tmp_path: Path) -> None:
    folder = write_registry(
        tmp_path,
        {
            "one": {"file_name": "triples.jsonl", "formatting": "retrieval", "task": "nouns", "instruction": "A"},
            "two": {"file_name": "pairs.jsonl", "formatting": "retrieval", "task": "nouns", "instruction": "B"},
            "other": {"file_name": "e5_allnli.jsonl", "formatting": "retrieval", "symmetric": True},
        },
    )
    nouns, other = load_tasks(["one", "other", "two"], folder)
    triples, pairs = json_lines("triples.jsonl"), json_lines("pairs.jsonl")
    assert (nouns.name, nouns.instruction) == ("nouns", "A")
    assert [row.instruction or nouns.instruction for row in nouns.rows] == ["A"] * len(triples) + ["B"] * len(pairs)
    assert (other.name, other.symmetric) == ("other", True)

    streamed, _ = stream_tasks("one, other, two", folder)
    rows = list(streamed.open_rows())
    assert without_place(rows)[0][:3] == without_place(nouns.rows)[0][:3]
    assert [row.instruction for row in rows] == [row.instruction or "A" for row in nouns.rows]
    assert list(streamed.open_rows()) == rows, "a stream can be opened again"


def test_samples_are_limited_as_in_the_host(tmp_path: Path) -> None:
    folder = write_registry(
        tmp_path,
        {
            "some": {"file_name": "triples.jsonl", "formatting": "retrieval", "num_samples": 4},
            "more": {"file_name": "triples.jsonl", "formatting": "retrieval", "num_samples": 9},
        },
    )
    some, more = load_tasks(["some", "more"], folder, seed=3)
    everything = [record["query"] for record in json_lines("triples.jsonl")]
    assert len(some.rows) == len({row.query for row in some.rows}) == 4
    assert len(more.rows) == 9
    assert {row.query for row in more.rows} == set(everything)
    assert load_tasks("some", folder, seed=3)[0].rows == some.rows
    assert [len(task.rows) for task in load_tasks(["some", "more"], folder, max_samples=2)] == [2, 2]


def test_bad_rows_of_all_data_sets_are_told_together(tmp_path: Path) -> None:
    folder = write_registry(
        tmp_path,
        {name: {"file_name": "broken.jsonl", "formatting": "retrieval"} for name in ("one", "two")},
    )
    with pytest.raises(ValueError, match=f"has {2 * len(BROKEN_LINES)} bad rows"):
        load_tasks(["one", "two"], folder)
    with pytest.raises(ValueError, match=r"broken\.jsonl:2: .*misspelt `positive`"):
        stream_tasks("one", folder)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_entry("far", {"hf_hub_url": "nobody/nothing", "formatting": "retrieval"}, "")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"Data set `far`: `nobody/nothing` .* cannot be loaded from the hub"):
        tasks_of_entries([entry], None, False, 0, 42, HubOptions())


def unreachable(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("no way there")


def test_a_hub_data_set_is_asked_for_as_the_entry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **settings: Any) -> datasets.Dataset:
        asked.update(path=path, name=name, **settings)
        return datasets.Dataset.from_list(json_lines("pairs.jsonl"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = {"hf_hub_url": "u/d", "formatting": "retrieval", "subset": "en", "split": "dev", "file_name": "x.jsonl"}
    entry = make_entry("far", settings, "data")
    (task,) = tasks_of_entries([entry], None, False, 0, 42, HubOptions("cache", "secret"))
    assert without_place(task.rows) == without_place(read_task("pairs.jsonl").rows)
    assert task.rows[1].where == "u/d[dev]:2"
    assert (asked["path"], asked["name"], asked["split"], asked["data_files"]) == ("u/d", "en", "dev", "x.jsonl")
    assert (asked["cache_dir"], asked["token"], asked["streaming"]) == ("cache", "secret", False)


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


def test_evaluation_joins_equal_texts_and_equal_queries() -> None:
    rows = [
        Row("q1", ("p1", "shared"), ("n1",)),
        Row("q2", ("p2",), ("shared", "n1")),
        Row("q1", ("p3",)),
        Row("q1", ("p4",), instruction="another question"),
    ]
    material = build_retrieval_eval(Task("t", rows, instruction="find", symmetric=True))
    assert sorted(material.corpus) == ["n1", "p1", "p2", "p3", "p4", "shared"]
    found = {
        (query, instruction): {material.corpus[place] for place in relevant}
        for query, instruction, relevant in zip(
            material.queries, material.query_instructions, material.relevant, strict=True
        )
    }
    assert found == {
        ("q1", "find"): {"p1", "shared", "p3"},
        ("q2", "find"): {"p2"},
        ("q1", "another question"): {"p4"},
    }
    assert material.corpus_instruction == "find"


@pytest.mark.parametrize(("name", "problem"), [("scored_pairs.csv", "scored pairs"), ("sentences.txt", "plain texts")])
def test_what_cannot_be_searched_is_refused_for_evaluation(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_retrieval_eval(read_task(name))
