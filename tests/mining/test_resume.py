"""Interrupted mining goes on where it was, and nothing that still holds is done again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.mining import miner
from llamafactory_embed.mining.miner import Miner
from llamafactory_embed.mining.options import STEP_OPTIONS, MiningOptions
from llamafactory_embed.mining.search import IndexSettings

from .helpers import mined, write_lines


pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IndexSettings, "rows_per_shard", lambda self, dimension: 50)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many jobs of each step were done."""
    counts: Counter[str] = Counter()
    do = Miner.do

    def counted(self: Miner, step: str, number: int) -> None:
        do(self, step, number)
        counts[step] += 1

    monkeypatch.setattr(Miner, "do", counted)
    return counts


@pytest.fixture
def options(checkpoint: Path, verbs: Path) -> dict[str, Any]:
    return {"model": checkpoint, "data": "verbs", "dataset_dir": verbs}


@pytest.mark.parametrize("step", ["embed", "search", "select"])
@pytest.mark.parametrize("when", ["before the file", "in the middle of the file"])
def test_interrupted_work_goes_on(
    step: str, when: str, options: dict[str, Any], done: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = mined(tmp_path, "whole", **options)
    jobs = dict(done)
    assert min(jobs.values()) >= 3, "every step has several jobs"
    done.clear()

    with monkeypatch.context() as patch:
        if when == "before the file":
            counted = Miner.do

            def fail(self: Miner, name: str, number: int) -> None:
                if name == step and number == 1:
                    raise KeyboardInterrupt
                counted(self, name, number)

            patch.setattr(Miner, "do", fail)
        else:
            replace, calls = os.replace, Counter[str]()

            def fail_to_rename(source: Any, target: Any) -> None:
                folder, name = Path(target).parent.name, Path(target).name
                calls[folder] += name.endswith((".npy", ".jsonl"))
                if folder == step and calls[folder] == 2:
                    raise KeyboardInterrupt
                replace(source, target)

            patch.setattr(os, "replace", fail_to_rename)
        with pytest.raises(KeyboardInterrupt):
            mined(tmp_path, "resumed", **options)
    assert not (tmp_path / "resumed.jsonl").exists()
    assert mined(tmp_path, "resumed", **options) == whole
    # A job whose file was not there was begun twice, and ended once.
    assert dict(done) == jobs
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir()) if "resumed" in path.name] == [
        "resumed.jsonl",
        "resumed.summary.json",
    ]


@pytest.mark.parametrize("where", ["RecordWriter.finish", "HashTable.write"])
def test_interrupted_reading_begins_again(
    where: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = mined(tmp_path, "whole", **options)

    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"llamafactory_embed.mining.material.{where}", fail)
        with pytest.raises(KeyboardInterrupt):
            mined(tmp_path, "resumed", **options)
    assert mined(tmp_path, "resumed", **options) == whole


def test_other_settings_do_again_only_what_they_change(
    options: dict[str, Any], done: Counter[str], tmp_path: Path
) -> None:
    mined(tmp_path, "kept", **options, keep_work=True)
    jobs = dict(done)

    def repeat(**more: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        done.clear()
        rows = mined(tmp_path, "kept", **options, keep_work=True, overwrite=True, **more)
        return rows, dict(done)

    again, count = repeat()
    assert count == {}
    others, count = repeat(seed=1)
    assert count == {"select": jobs["select"]}
    assert others != again
    _, count = repeat(seed=1, index="ivf")
    assert count == {"search": jobs["search"], "select": jobs["select"]}
    prompted, count = repeat(instruction="Find")
    assert count == jobs
    assert prompted == mined(tmp_path, "fresh", **options, instruction="Find")


def test_changed_data_are_read_again(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"query": f"q{number}", "positive": f"p{number}"} for number in range(4)]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"model": checkpoint, "data": data, "ranks": "0:9", "keep_work": True}
    before = mined(tmp_path, **options)
    write_lines(data, [*rows[:3], {"query": "q3", "positive": "another"}])
    after = mined(tmp_path, **options, overwrite=True)
    assert any("another" in row["negative"] for row in after)
    assert not any("another" in row["negative"] for row in before)


def test_every_option_belongs_to_a_step_or_changes_no_result() -> None:
    without_effect = {
        "data", "output", "dataset_dir",  # the data set's location and settings are compared
        "instruction",  # compared as it applies, wherever it comes from
        "index_device", "device", "ray_workers", "work_folder", "keep_work", "overwrite",
    }  # fmt: skip
    of_steps = [name for names in STEP_OPTIONS.values() for name in names]
    assert sorted([*of_steps, *without_effect]) == sorted(field.name for field in dataclasses.fields(MiningOptions))


def test_rows_are_read_again_when_instructions_take_other_turns(checkpoint: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"query": f"q{number}", "positive": f"p{number}"} for number in range(4)])
    instructions = (["Find", "Search"], ["Search", "Find"])
    for turns in instructions:
        entry = {"file_name": "rows.jsonl", "formatting": "retrieval", "instruction": turns}
        (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry}), "utf-8")
        found = mined(
            tmp_path, model=checkpoint, data="rows", dataset_dir=tmp_path, ranks="0:9", keep_work=True, overwrite=True
        )
        assert [row["instruction"] for row in found] == turns * 2


def test_a_work_folder_of_another_version_is_done_again(
    options: dict[str, Any], done: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(miner, "LAYOUT", 1)
        before = mined(tmp_path, **options, keep_work=True)
    jobs = dict(done)
    done.clear()
    (tmp_path / "mined.jsonl.work" / "read" / "answers.hashes.npy").unlink()
    assert mined(tmp_path, **options, keep_work=True, overwrite=True) == before
    assert dict(done) == jobs


def test_a_folder_of_others_is_left_alone(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(ValueError, match=r"`work_folder`: \S+ holds other files; name an empty or new folder"):
        mined(tmp_path, **options, work_folder=folder)
    assert (folder / "search" / "thesis.txt").read_text("utf-8") == "years of work"
