"""Rows that were prepared once: mapped from the cache they are those that were read, until what they depend on
changes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval import prepared, reader, repeated_texts, row_table
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.row_table import RowTable
from llamafactory_embed.data.retrieval.rows import Row, Task
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler
from llamafactory_embed.data.retrieval.stored_rows import Piece, StoredRows
from llamafactory_embed.train.embed.tasks import split_tasks
from tests.data.retrieval.helpers import FILES, FOLDERS


@pytest.fixture(autouse=True)
def small_data_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_KEPT", 1)
    monkeypatch.setattr(row_table, "ROWS_OF_BLOCK", 2)  # tables of several blocks


@pytest.fixture
def times_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of data sets, whenever one is read from its file."""
    read: list[str] = []
    original = reader.rows_of_entry

    def counted(entry: Any, *words: Any, **settings: Any) -> Iterator[Row]:
        read.append(entry.name)
        return original(entry, *words, **settings)

    monkeypatch.setattr(reader, "rows_of_entry", counted)
    return read


def load(
    cache: Path, file_name: str, folder: Path = FILES, skip: bool = False, renew: bool = False, **more: Any
) -> Task:
    settings = {name: more.pop(name) for name in ("max_samples", "num_negatives") if name in more}
    entry = make_entry("it", {"file_name": file_name, "formatting": "retrieval", **more}, str(folder))
    hub = HubOptions(str(cache), renew=renew)
    (task,) = tasks_of_entries([entry], settings.get("max_samples"), skip, settings.get("num_negatives", 0), 42, hub)
    return task


def in_memory(monkeypatch: pytest.MonkeyPatch, *words: Any, **settings: Any) -> Task:
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "SMALLEST_KEPT", 10**12)
        return load(*words, **settings)


@pytest.mark.parametrize(
    ("file_name", "folder"),
    [
        ("tdro.jsonl", FILES),
        ("triples.jsonl", FILES),
        ("e5_allnli.jsonl", FILES),
        ("miracl-v1.0-de", FOLDERS),
    ],
)
def test_kept_rows_are_those_of_the_file(
    file_name: str, folder: Path, tmp_path: Path, times_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"split": "dev"} if "miracl" in file_name else {}
    expected = in_memory(monkeypatch, tmp_path, file_name, folder, **settings)
    assert not list(tmp_path.iterdir())
    first, second = (load(tmp_path, file_name, folder, **settings) for _ in range(2))
    assert list(first.rows) == list(second.rows) == list(expected.rows)
    assert len(expected.rows)
    assert [row.where for row in second.rows] == [row.where for row in expected.rows]
    assert [second.rows[place] for place in range(len(second.rows))] == list(expected.rows)
    assert list(second.corpus) == list(expected.corpus)
    assert times_read in ([], ["it", "it"]), "in memory and once for the cache; a collection is read otherwise"
    (kept,) = (tmp_path / prepared.FOLDER).iterdir()
    assert {path.name for path in kept.iterdir()} == {"record.json", "rows.arrow", "corpus.arrow"}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")


PAIRS = [{"query": f"q{n}", "positive": [f"p{n}", f"r{n}"], "negative": [f"n{n}", f"n{n + 1}"]} for n in range(24)]


def test_rows_are_read_anew_when_their_file_or_their_reading_changes(tmp_path: Path, times_read: list[str]) -> None:
    file, cache = tmp_path / "pairs.jsonl", tmp_path / "cache"
    write_lines(file, PAIRS)
    whole = load(cache, file.name, tmp_path)
    assert [len(load(cache, file.name, tmp_path, max_samples=5, num_samples=number).rows) for number in (3, 9)] == [
        3,
        5,
    ]
    assert len(times_read) == 1, "samples are taken of what is kept"
    assert load(cache, file.name, tmp_path, instruction=["A", "B"]).rows[1].instruction == "B"
    assert load(cache, file.name, tmp_path, columns={"positive": "query"}).rows[1].positives == ("q1",)
    assert len(times_read) == 3
    load(cache, file.name, tmp_path, renew=True)
    assert len(times_read) == 4
    file.write_text(file.read_text().replace("q1", "Q1"))
    os.utime(file, ns=(1, 1))
    changed = load(cache, file.name, tmp_path)
    assert (whole.rows[1].query, changed.rows[1].query) == ("q1", "Q1"), "what is mapped stays as it is"


def test_bad_rows_of_kept_data_are_told_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, times_read: list[str]
) -> None:
    with pytest.raises(ValueError, match="has 8 bad rows") as read:
        in_memory(monkeypatch, tmp_path, "broken.jsonl")
    for _ in range(2):
        with pytest.raises(ValueError, match="has 8 bad rows") as kept:
            load(tmp_path, "broken.jsonl")
        assert str(kept.value) == str(read.value)
    assert not list((tmp_path / prepared.FOLDER).iterdir())
    assert len(times_read) == 3
    expected = in_memory(monkeypatch, tmp_path, "broken.jsonl", skip=True)
    for _ in range(2):
        assert list(load(tmp_path, "broken.jsonl", skip=True).rows) == list(expected.rows)
    told = [record.getMessage() for record in caplog.records if "bad rows were skipped" in record.getMessage()]
    assert len(told) == 3
    assert len(set(told)) == 1
    with pytest.raises(ValueError, match="has 8 bad rows") as kept:
        load(tmp_path, "broken.jsonl")
    assert str(kept.value) == str(read.value), "also where rows without the bad ones are kept"


def test_rows_without_negatives_among_kept_rows_are_told_by_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "uneven.jsonl", [*PAIRS[:3], {"query": "d", "positive": "e"}])
    with pytest.raises(ValueError, match=r"uneven\.jsonl:4: this row has no negatives"):
        load(tmp_path / "cache", "uneven.jsonl", tmp_path, num_negatives=1)
    assert len(load(tmp_path / "cache", "uneven.jsonl", tmp_path).rows) == 4


def test_an_unfinished_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(writer: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(row_table.RowWriter, "_write_block", fail)
        with pytest.raises(ValueError, match=r"cannot be written to .*No space left.*`cache_dir`"):
            load(tmp_path, "tdro.jsonl")
    assert not list((tmp_path / prepared.FOLDER).iterdir())
    assert len(load(tmp_path, "tdro.jsonl").rows)


def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Not that of a process that runs, nor that of another machine, unless it is old."""
    load(tmp_path, "tdro.jsonl")
    (kept,) = (tmp_path / prepared.FOLDER).iterdir()
    shutil.rmtree(kept)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = platform.node()
    owners = (f"{here}.{ended.pid}", f"{here}.{os.getpid()}", f"other.machine.{ended.pid}", f"another.{ended.pid}")
    left = [kept.with_name(f"{kept.name}.{owner}.abc{prepared.UNFINISHED}") for owner in owners]
    for folder in left:
        folder.mkdir()
        (folder / "rows.arrow").touch()
    for path in (left[3], left[3] / "rows.arrow"):
        os.utime(path, (0, 0))
    load(tmp_path, "tdro.jsonl")
    assert sorted((tmp_path / prepared.FOLDER).iterdir()) == sorted([kept, left[1], left[2]])


@pytest.mark.parametrize("in_column", [True, False])
def test_vectors_of_a_teacher_are_those_of_their_records(in_column: bool, tmp_path: Path) -> None:
    vectors = np.arange(24 * 3 * 2, dtype=np.float32).reshape(24, 3, 2)
    more = {} if in_column else {"teacher_vectors": "vectors.npy"}
    np.save(tmp_path / "vectors.npy", vectors)
    own = [record | ({"teacher_vectors": vectors[n].tolist()} if in_column else {}) for n, record in enumerate(PAIRS)]
    write_lines(tmp_path / "pairs.jsonl", [own[0], {"query": 1}, *own[2:]])
    for _ in range(2):
        task = load(tmp_path / "cache", "pairs.jsonl", tmp_path, skip=True, num_samples=9, **more)
        for row in task.rows:
            assert row.teacher_vectors is not None
            assert np.array_equal(row.teacher_vectors, vectors[int(row.query[1:])])


@pytest.mark.parametrize("ids_at_once", [2**24, 7])
def test_batches_of_kept_rows_are_those_of_rows_in_memory(
    ids_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With texts that rows have in common, samples with repetitions and held-out rows."""
    monkeypatch.setattr(repeated_texts, "IDS_AT_ONCE", ids_at_once)
    write_lines(tmp_path / "pairs.jsonl", PAIRS)

    def batches(task: Task) -> list[Any]:
        (train,), _ = split_tasks([task], 0.2, seed=1)
        dataset = RetrievalDataset([train], num_negatives=1)
        return list(GlobalBatchSampler(dataset, 4, BatchingOptions(), seed=3))

    for settings in ({}, {"num_samples": 60}, {"max_samples": 20}):
        expected = batches(in_memory(monkeypatch, tmp_path, "pairs.jsonl", tmp_path, **settings))
        for _ in range(2):
            kept = load(tmp_path / "cache", "pairs.jsonl", tmp_path, **settings)
            assert batches(kept) == expected
            assert kept.rows.tables[0].kept_as is not None
    found = repeated_texts.find_repeated(kept.rows.tables)
    assert found is not None
    assert found.of_rows(np.arange(24))[0].tolist() == [1, *[2] * 22, 1], "the negatives between neighbours"


def test_slices_of_joined_rows_are_those_of_a_list() -> None:
    rows = [Row(f"q{number}", ("p",)) for number in range(9)]
    stored = StoredRows([Piece(RowTable.of_rows(rows[:4])), Piece(RowTable.of_rows(rows[4:]), np.arange(5)[::-1])])
    joined = rows[:4] + rows[:3:-1]
    for part in (slice(None), slice(2, 7, 2), slice(None, None, -1), slice(7, 1, -3), slice(3, 3)):
        assert list(stored[part]) == joined[part]
    assert list(stored[::-1][1:5]) == joined[::-1][1:5]


@pytest.mark.parametrize("name", ["record.json", "rows.arrow", "corpus.arrow"])
@pytest.mark.parametrize("harm", ["cut off", "emptied", "removed"])
def test_damaged_prepared_data_are_named_and_can_be_renewed(name: str, harm: str, tmp_path: Path) -> None:
    expected = list(load(tmp_path, "tdro.jsonl").rows)
    (kept,) = (tmp_path / prepared.FOLDER).iterdir()
    content = (kept / name).read_bytes()
    if harm == "removed":
        (kept / name).unlink()
    else:
        (kept / name).write_bytes(content[: len(content) // 2] if harm == "cut off" else b"")
    with pytest.raises(ValueError, match=r"The prepared data in .* are damaged .*overwrite_cache: true"):
        load(tmp_path, "tdro.jsonl")
    assert list(load(tmp_path, "tdro.jsonl", renew=True).rows) == expected
    assert list(load(tmp_path, "tdro.jsonl").rows) == expected
