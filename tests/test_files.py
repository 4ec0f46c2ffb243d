"""Folders and files that take the place of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamafactory_embed import files
from llamafactory_embed.files import put_in_place, whole_file


def write_folder(folder: Path, text: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    (folder / text).touch()
    return folder


@pytest.mark.parametrize("swaps", [True, False], ids=["swapped", "renamed"])
@pytest.mark.parametrize("target", ["missing", "empty", "full"])
def test_a_folder_takes_its_place(target: str, swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    place = tmp_path / "place"
    if target == "empty":
        place.mkdir()
    if target == "full":
        write_folder(place, "old")
    put_in_place(write_folder(tmp_path / "finished", "new"), place)
    assert sorted(path.name for path in place.rglob("*")) == ["file", "inner", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_where_names_cannot_be_swapped_a_failure_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, finished = write_folder(tmp_path / "place", "old"), write_folder(tmp_path / "finished", "new")
    rename = os.rename

    def fail_at_the_new_one(source: Path, target: Path) -> None:
        if source == finished and (not place.exists() or any(place.iterdir())):
            raise OSError(39 if place.exists() else 5, "no")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", fail_at_the_new_one)
    with pytest.raises(OSError):
        put_in_place(finished, place)
    assert (place / "old").exists()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("name"), replace(*paths)))
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert order == ["sync", "name"]
