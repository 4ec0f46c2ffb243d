"""The package as it is built: its files, its metadata, the same wheel from the sdist, and what it says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from scripts import check_wheel


REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The sdist, the wheel of the sdist, and the wheel of the repository."""
    folder = tmp_path_factory.mktemp("built")
    return *check_wheel.build_package(folder / "both"), check_wheel.build_wheel_from_tree(folder / "tree")


def test_the_wheel_holds_what_it_should_and_the_sdist_builds_the_same(built: tuple[Path, Path, Path]) -> None:
    assert check_wheel.problems_of(*built) == []


def test_what_is_wrong_is_found(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    sdist, wheel, from_tree = built
    spoilt = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(spoilt, "w") as target:
        for name in source.namelist():
            if not name.endswith("dataset_info.json"):
                target.writestr(name, source.read(name))
        target.writestr("tests/conftest.py", "")
    problems = check_wheel.problems_of(sdist, spoilt, from_tree)
    assert f"{wheel.name} lacks {check_wheel.MATERIALS}data/dataset_info.json" in problems
    assert f"{wheel.name} holds tests/conftest.py" in problems
    assert "The sdist and the repository build different wheels." in problems
    assert f"{wheel.name} has" in problems[-1]  # nothing in it is compressed


def test_twine_accepts_both(built: tuple[Path, Path, Path]) -> None:
    pytest.importorskip("twine", reason="comes with the extra `dev`")
    words = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built[:2])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unpacked_wheel_initializes_a_folder(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Without the repository on the path: from the files that the wheel carries, without an installed dependency."""
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from llamafactory_embed.cli import main; main(['init', 'mine'])"
    )
    subprocess.run([sys.executable, "-S", "-c", code, str(tmp_path / "site")], cwd=tmp_path, check=True)
    for name in (check_wheel.RECIPE, "data/dataset_info.json", "data/wordnet/LICENSE"):
        assert (tmp_path / "mine" / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_the_notices_travel_with_the_wheel(built: tuple[Path, Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata.get_all("License-File") == ["LICENSE", "data/wordnet/LICENSE"]


def test_every_extra_of_the_docs_exists() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "Dockerfile", *(REPOSITORY / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    lists = re.findall(r"(?:llamafactory-embed|\s['\"]?\.)\[([a-z, -]+)\]", text)
    named = {extra.strip() for extras in lists for extra in extras.split(",")}
    assert {"demo", "eval"} <= named <= set(PROJECT["optional-dependencies"])
