"""Records of files of every type, with their lines, and files that cannot be read."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import datasets
import pytest

from tests.data.retrieval.helpers import FILES, json_lines, read_task, without_place


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
        ("latin.csv", "query,positive\na,b\nc,caf\xe9\n", r"latin\.csv` is not UTF-8 text after its row [01]"),
        (
            "torn.jsonl.gz",
            "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\x4b",
            r"torn\.jsonl\.gz` is damaged after its row 0",
        ),
        ("no.jsonl.gz", "{}", r"no\.jsonl\.gz` is damaged after its row 0"),
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
