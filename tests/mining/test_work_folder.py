"""What mining has done is kept as long as it is as it was written; what is damaged is said and made again, with all
that may have been made from it."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed.mining.work_folder import DONE, SETTINGS, STEPS, WorkFolder, checked_file

from .helpers import mined


WRITTEN = {step: {"option": step} for step in STEPS}
PARTS = {
    "embed": ["passages-00000.npy", "queries-00000.npy"],
    "search": ["shard-00000.npy"],
    "select": ["rows-00000.json", "rows-00000.jsonl", "rows-00001.json", "rows-00001.jsonl"],
}


def npy(*shape: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.float32))
    return file.getvalue()


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "a bit": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "other bytes": lambda content: bytes(len(content)),
    "other JSON": lambda content: b'{"searched": 3}\n',
    "another array": lambda content: npy(3, 2),
}


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    """All steps done."""
    work = WorkFolder(str(tmp_path / "work"))
    work.prepare(WRITTEN)
    for name in ("rows.jsonl", "passages.spans.npy", "counts.json"):
        (work.folder("read") / name).write_bytes(npy(4, 2))
    work.finish("read")
    for step, names in PARTS.items():
        for name in names:
            with checked_file(work.folder(step) / name) as temporary:
                temporary.write_bytes(npy(4, 2))
    return work


def left_of(work: WorkFolder) -> dict[str, list[str]]:
    """The results in the steps' folders."""
    names = {step: sorted(file.name for file in work.folder(step).iterdir()) for step in STEPS}
    return {step: [name for name in names[step] if name in ALL[step]] for step in STEPS}


ALL = {"read": ["counts.json", "passages.spans.npy", "rows.jsonl"], **PARTS}


def test_whole_work_is_kept(work: WorkFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        work.prepare(WRITTEN)
    assert left_of(work) == ALL
    assert not caplog.records


@pytest.mark.parametrize("step", STEPS)
def test_a_folder_that_is_half_removed_is_still_one(
    step: str, work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def remove_until(folder: Path, **how: Any) -> None:
        if folder == work.folder(step):
            raise KeyboardInterrupt
        remove(folder, **how)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_until)
        with pytest.raises(KeyboardInterrupt):
            work.remove()
    work.prepare(WRITTEN)
    work.remove()
    assert not work.path.exists()


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("read/rows.jsonl", {}),
        (f"read/{DONE}", {}),
        ("embed/passages-00000.npy", {"embed": ["queries-00000.npy"]}),
        ("embed/passages-00000.npy.sum", {"embed": ["queries-00000.npy"]}),
        ("search/shard-00000.npy", {"embed": ALL["embed"]}),
        ("select/rows-00000.json", {"select": PARTS["select"][2:]}),
        ("select/rows-00001.jsonl", {"select": PARTS["select"][:2]}),
    ],
)
def test_what_is_damaged_is_said_and_made_again(
    file: str, kept: dict[str, list[str]], harm: str, work: WorkFolder, caplog: pytest.LogCaptureFixture
) -> None:
    path = work.path / file
    step = file.partition("/")[0]
    path.write_bytes(HARMS[harm](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        work.prepare(WRITTEN)
    before = STEPS[: STEPS.index(step)]
    assert left_of(work) == {each: [] for each in STEPS} | {each: ALL[each] for each in before} | kept
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(path.parent) in said
    assert f"damaged since `{step}` wrote it; made again, with all that may have been made from it." in said


@pytest.mark.parametrize(
    ("file", "is_lost"),
    [
        ("read/rows.jsonl", True),
        ("select/rows-00000.json", True),
        ("select/rows-00000.jsonl.sum", True),
        ("select/rows-00000.jsonl", False),  # a job that is to be done
    ],
)
def test_what_is_gone_is_made_again(
    file: str, is_lost: bool, work: WorkFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (work.path / file).unlink()
    with caplog.at_level(logging.WARNING):
        work.prepare(WRITTEN)
    assert len(caplog.records) == is_lost
    if file.startswith("read"):
        assert not work.is_finished("read")
        assert left_of(work) == {step: [] for step in STEPS}
    else:
        assert not (work.folder("select") / "rows-00000.jsonl").exists()
        assert set(left_of(work)["select"]) >= {*PARTS["select"][2:]}


@pytest.mark.parametrize("harm", [*HARMS, "removed"])
def test_damaged_settings_are_other_settings(harm: str, work: WorkFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = work.folder("search") / SETTINGS
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(HARMS[harm](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        work.prepare(WRITTEN)
    assert left_of(work) == ALL | {"search": [], "select": []}
    assert path.is_file()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: begun with other settings than these; `search` and what follows begin anew."
    ] * (harm != "removed")


def test_a_list_of_files_leads_nowhere_else(work: WorkFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    (work.folder("read") / DONE).write_text(f"0 ../../precious\n0 {precious}")
    work.prepare(WRITTEN)
    assert precious.exists()
    assert not work.is_finished("read")


@pytest.mark.parametrize("damaged", ["read/passages.jsonl", "embed/passages-00001.npy", "select/rows-00000.json"])
def test_mining_with_a_damaged_file_gives_the_same(
    damaged: str, checkpoint: Path, verbs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faiss")
    options: dict[str, Any] = {"model": checkpoint, "data": "verbs", "dataset_dir": verbs, "keep_work": True}
    before = mined(tmp_path, **options)
    path = tmp_path / "mined.jsonl.work" / damaged
    content = path.read_bytes()
    path.write_bytes(HARMS["a bit"](content))
    with caplog.at_level(logging.WARNING):
        assert mined(tmp_path, **options, overwrite=True) == before
    assert path.read_bytes() == content
    assert f"{path}" in caplog.text
