"""Rows that several processes have read are those of one process, with their lines, and so are the bad rows told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.file_parts import count_rows, cut_files, read_part
from llamafactory_embed.data.files import read_records
from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval import prepared, shares
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.rows import Row, Task


def record(number: int) -> str:
    row = {"query": f"ü{number}", "positive": [f"p{number}", f"r{number}"], "negative": "n" * (number % 7 + 1)}
    return json.dumps(row, ensure_ascii=number % 2 == 0)


# A mark at the start and in the middle, every end of a line, empty lines (one of other white space), bad rows, and no
# end of the last line.
AWKWARD = (
    "\ufeff"
    + "\r\n".join(map(record, range(9)))
    + "\n\n\ufeff"
    + record(9)
    + "\n\u2028\n{\n"
    + "\r".join(map(record, range(10, 14)))
    + "\n"
    + json.dumps({"query": "no positive"})
    + "\n"
    + "\n".join(map(record, range(14, 40)))
)


@pytest.fixture(autouse=True)
def small_data_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SMALLEST_KEPT", 1)
    monkeypatch.setattr(shares, "SMALLEST_SHARE", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files; of the second the lines end as everywhere."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_bytes(AWKWARD.encode("utf-8"))
    (tmp_path / "rows" / "b.jsonl").write_text("\n".join(map(record, range(40, 60))) + "\n", "utf-8")
    return tmp_path


def load(folder: Path, processes: int, skip: bool = True, **settings: Any) -> Task:
    entry = make_entry("it", {"file_name": "rows", "formatting": "retrieval", **settings}, str(folder))
    hub = HubOptions(str(folder / f"cache-{processes}"), processes=processes)
    (task,) = tasks_of_entries([entry], None, skip, 0, 42, hub)
    return task


def all_of(task: Task) -> list[tuple[Row, int]]:
    return [(row, row.record) for row in task.rows]


def kept(folder: Path, processes: int) -> list[Path]:
    return sorted((folder / f"cache-{processes}" / prepared.FOLDER).glob("*/rows*"))


def test_parts_of_files_are_all_of_their_lines(folder: Path) -> None:
    """Wherever the files are cut: every number of shares up to one a byte."""
    whole = list(read_records(str(folder / "rows")))
    size = sum(path.stat().st_size for path in (folder / "rows").iterdir())
    for number in (1, 2, 3, 7, 50, size):
        found: list[Any] = []
        lines: dict[str, int] = {}
        for part in (part for share in cut_files(str(folder / "rows"), number) for part in share):
            before = lines.get(part.path, 0)
            of_part = list(read_part(part, before))
            own_lines, records = count_rows(part)
            assert records == len(of_part)
            lines[part.path] = before + own_lines
            found += of_part
        assert list(map(repr, found)) == list(map(repr, whole))
    assert cut_files(str(folder), 3) == [], "no file"
    (folder / "rows" / "c.csv").touch()
    assert cut_files(str(folder / "rows"), 3) == [], "a table may hold line ends in its cells"


def test_rows_of_several_processes_are_those_of_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    instructions = {"instruction": ["A", "B", "C"]}  # in turn, by the number of the record
    for processes in (1, 3, 3):
        task = load(folder, processes, **instructions)
        if processes == 1:
            expected = all_of(task)
        assert all_of(task) == expected
    assert [len(kept(folder, processes)) for processes in (1, 3)] == [1, 3]
    assert len(expected) == 59
    told = [each.getMessage() for each in caplog.records if "bad rows were skipped" in each.getMessage()]
    assert len(told) == 3
    assert len(set(told)) == 1


@pytest.mark.parametrize("bad", [3, 30])
def test_bad_rows_of_several_processes_are_told_as_by_one(bad: int, folder: Path) -> None:
    """Also where so many are bad that reading stops."""
    lines = [record(number) for number in range(60)]
    for number in range(0, 60, 60 // bad):
        lines[number] = json.dumps({"query": number})
    (folder / "rows" / "b.jsonl").write_text("\n".join(lines), "utf-8")
    told = []
    for processes in (1, 3):
        with pytest.raises(ValueError, match="bad rows") as problem:
            load(folder, processes, skip=False)
        told.append(str(problem.value))
        assert not kept(folder, processes)
    assert told[0] == told[1]
    assert "b.jsonl:" in told[0]


@pytest.mark.parametrize("content", [b'{"query": "\xff"}', b"inference"])
def test_what_one_process_must_read_is_read_by_one(content: bytes, folder: Path) -> None:
    """A file that is no text, of which one process tells after which row; and pairs that are joined."""
    pairs = [{"premise": f"p{n % 5}", "hypothesis": f"h{n}", "label": n % 3} for n in range(20)]
    own = "\n".join(map(json.dumps, pairs)).encode() if content == b"inference" else content
    (folder / "rows" / "b.jsonl").write_bytes(own)
    found = []
    for processes in (1, 3):
        try:
            found.append(repr(all_of(load(folder, processes))))
        except ValueError as error:
            found.append(str(error))
    assert found[0] == found[1]
    assert ("not UTF-8" in found[0]) == (content != b"inference")
    assert len(kept(folder, 3)) == (content == b"inference")


def test_a_killed_process_is_told_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def killed(*words: Any, **settings: Any) -> subprocess.Popen[str]:
        started.append(start(*words, **settings))
        if len(started) == 2:
            os.kill(started[-1].pid, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", killed)
    with pytest.raises(ValueError, match=r"ended with code -9.*preprocessing_num_workers"):
        load(folder, 3)
    assert [process.poll() for process in started] == [-9, -9, -9], "no process is left"
    assert not list((folder / "cache-3" / prepared.FOLDER).iterdir())


def test_a_full_disk_is_told_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `/dev/full` takes nothing."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    read: Callable[..., Any] = shares._read

    def on_full_disk(entry: Any, cut: Any, files: list[str], tables: list[str], skip: bool) -> Any:
        return read(entry, cut, files, ["/dev/full"] * len(tables), skip)

    monkeypatch.setattr(shares, "_read", on_full_disk)
    with pytest.raises(ValueError, match=r"cannot be written to .*No space left.*`cache_dir`"):
        load(folder, 3)
