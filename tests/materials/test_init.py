"""`llamafactory-embed init`: everything arrives, what its owner changed stays, and what a release changes is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory_embed.cli import main
from llamafactory_embed.materials import shipped
from llamafactory_embed.materials.update import MANIFEST, write_materials


REPOSITORY = Path(__file__).parents[2]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def read(root: Path) -> dict[str, str]:
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


RELEASE = {"examples/a.yaml": "a 1", "examples/deep/b.yaml": "b 1", "data/info.json": "info 1"}


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped files, which a test may change as a new release would."""
    root = tmp_path / "release"
    write(root, RELEASE)
    monkeypatch.setattr(shipped, "IN_WHEEL", root)
    return root


def test_all_recipes_and_data_arrive_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    assert main(["init", str(folder)]) == 0
    expected = {
        path.relative_to(REPOSITORY): path.read_bytes()
        for name in ("examples", "data")
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file()
    }
    found = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}
    assert found == expected
    assert f"{len(expected)} written" in capsys.readouterr().out
    assert main(["init", str(folder)]) == 0
    assert f"{len(expected)} up to date" in capsys.readouterr().out


def test_an_update_replaces_what_nobody_changed(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_materials(folder)
    write(release, {"examples/a.yaml": "a 2", "examples/c.yaml": "c 1"})
    (folder / "data/info.json").unlink()
    written = write_materials(folder)
    assert (written.updated, written.created) == (["examples/a.yaml"], ["data/info.json", "examples/c.yaml"])
    assert read(folder) == read(release)


def test_a_changed_file_stays_and_the_new_version_lies_beside_it_once(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_materials(folder)
    write(folder, {"examples/a.yaml": "my own"})
    assert write_materials(folder).kept == ["examples/a.yaml"]
    assert read(folder) == RELEASE | {"examples/a.yaml": "my own"}

    write(release, {"examples/a.yaml": "a 2"})
    assert write_materials(folder).conflicting == ["examples/a.yaml"]
    assert read(folder) == RELEASE | {"examples/a.yaml": "my own", "examples/a.yaml.new": "a 2"}

    (folder / "examples/a.yaml.new").unlink()  # its owner has seen it
    assert write_materials(folder).kept == ["examples/a.yaml"]
    assert not (folder / "examples/a.yaml.new").exists()


def test_files_that_were_there_before_count_as_changed(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    write(folder, {"data/info.json": "another project's"})
    assert main(["init", str(folder)]) == 0
    assert "data/info.json is yours; the new version is data/info.json.new" in capsys.readouterr().out
    assert (folder / "data/info.json").read_text() == "another project's"


def test_what_is_no_longer_shipped_is_left_and_named_once(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_materials(folder)
    (release / "examples/a.yaml").unlink()
    assert write_materials(folder).no_longer_shipped == ["examples/a.yaml"]
    assert (folder / "examples/a.yaml").read_text() == "a 1"
    assert write_materials(folder).no_longer_shipped == []


def test_a_part_of_the_files_and_later_the_rest(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert write_materials(folder, ("examples/deep", "data/info.json")).created == [
        "data/info.json",
        "examples/deep/b.yaml",
    ]
    assert write_materials(folder).created == ["examples/a.yaml"]


def test_what_editors_leave_is_not_shipped(release: Path, tmp_path: Path) -> None:
    write(release, {"examples/.DS_Store": "", "examples/a.yaml.new": "", "examples/a.yaml~": "", "data/x.tmp": ""})
    assert shipped.list_shipped(release) == sorted(RELEASE)


@pytest.mark.parametrize(
    ("present", "name", "sentence"),
    [
        ({"file": ""}, "file", "is a file: name a folder"),
        ({"mine/examples": ""}, "mine", "mine/examples is in the way"),
        ({"mine/examples/a.yaml/x": ""}, "mine", "mine/examples/a.yaml is in the way"),
        ({f"mine/{MANIFEST}": "[]"}, "mine", "is damaged: remove it"),
        ({}, "release", "is the checkout that the recipes come from"),
    ],
)
def test_folders_that_cannot_be_written(
    present: dict[str, str],
    name: str,
    sentence: str,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, present)
    assert main(["init", str(tmp_path / name)]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_the_manifest_of_a_stopped_run_knows_what_was_written(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, {"examples/deep": "in the way"})
    with pytest.raises(ValueError, match="in the way"):
        write_materials(folder)
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"data/info.json", "examples/a.yaml"}


def test_an_installation_without_recipes_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "IN_WHEEL", tmp_path / "none")
    monkeypatch.setattr(shipped, "CHECKOUT", tmp_path / "neither")
    assert main(["init", str(tmp_path / "mine")]) == 1
    assert "This installation has no recipes" in capsys.readouterr().err
