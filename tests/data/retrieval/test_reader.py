"""From data sets to tasks: bad rows with file and line, joining, limits."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from llamafactory_embed.data.problems import BadRows
from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.reader import load_tasks, parse_records, records_of_entry, tasks_of_entries
from llamafactory_embed.data.retrieval.stream import stream_tasks
from tests.data.retrieval.helpers import FILES, json_lines, read_task, without_place


BROKEN_LINES = (2, 3, 4, 5, 6, 7, 8, 9)


def test_all_bad_rows_are_told_at_once_with_known_columns() -> None:
    with pytest.raises(ValueError, match="has 8 bad rows") as error:
        read_task("broken.jsonl")
    message = str(error.value)
    told = [line.strip() for line in message.splitlines()[1:-1]]
    assert [line.split(": ")[0] for line in told] == [f"{FILES / 'broken.jsonl'}:{line}" for line in BROKEN_LINES]
    assert "`skip_bad_rows: true`" in message
    assert "`positive_passages`" in message.splitlines()[-1]
    assert "this is not JSON" in told[4]
    assert "neither a JSON object" in told[6]


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
    assert list(load_tasks("some", folder, seed=3)[0].rows) == list(some.rows)
    assert [len(task.rows) for task in load_tasks(["some", "more"], folder, max_samples=2)] == [2, 2]


def test_a_recipe_takes_the_first_rows_of_a_data_set(tmp_path: Path) -> None:
    entry = {"file_name": "triples.jsonl", "formatting": "retrieval"}
    folder = write_registry(tmp_path, {"some": entry, "more": entry | {"num_samples": 9}})
    everything = [record["query"] for record in json_lines("triples.jsonl")]
    some, more = load_tasks("some[:3], more[:2]", folder, seed=3)
    assert [row.query for row in some.rows] == everything[:3]
    assert len(more.rows) == 9
    assert {row.query for row in more.rows} == set(everything[:2]), "the sample is drawn from the first rows"
    (whole,) = load_tasks("some[:1000]", folder)
    assert [row.query for row in whole.rows] == everything
    (streamed,) = stream_tasks("some[:3]", folder)
    assert [row.query for row in streamed.open_rows()] == everything[:3]
    with pytest.raises(ValueError, match=r"`some\[:0\]` takes no rows"):
        load_tasks("some[:0]", folder)
    with pytest.raises(ValueError, match="other"):
        load_tasks("other[:3]", folder)


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


@pytest.mark.parametrize("key", ["symmetric", "own_passages_only"])
def test_data_sets_of_one_task_must_agree(key: str, tmp_path: Path) -> None:
    shared = {"file_name": "triples.jsonl", "formatting": "retrieval", "task": "nouns"}
    folder = write_registry(tmp_path, {"one": {**shared, key: True}, "two": shared, "three": {**shared, key: True}})
    with pytest.raises(ValueError, match=f"Task `nouns` joins data sets of which only some are `{key}`"):
        load_tasks(["one", "two"], folder)
    with pytest.raises(ValueError, match=f"Task `nouns` joins data sets of which only some are `{key}`"):
        stream_tasks(["two", "one"], folder)
    assert getattr(load_tasks(["one", "three"], folder)[0], key)
    assert getattr(stream_tasks(["one", "three"], folder)[0], key)


def test_records_come_with_their_rows() -> None:
    entry = make_entry("it", {"file_name": "tdro.jsonl", "formatting": "retrieval"}, str(FILES))
    parsed = list(parse_records(records_of_entry(entry, HubOptions(), streaming=False), entry, BadRows()))
    assert [record for record, _ in parsed] == json_lines("tdro.jsonl")
    assert [row for _, row in parsed] == list(read_task("tdro.jsonl").rows)
