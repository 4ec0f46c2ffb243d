"""docs/architecture.md names every room, and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llamafactory_embed"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(
    path.name + "/" * path.is_dir()
    for path in PACKAGE.iterdir()
    if (path.is_dir() and path.name != "__pycache__") or (path.suffix == ".py" and path.name != "__init__.py")
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_named(room: str) -> None:
    assert f"`{room}`" in PAGE


def named_files() -> list[str]:
    return sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE)))


def test_there_are_files_to_check() -> None:
    assert len(named_files()) > 40


@pytest.mark.parametrize("file", named_files())
def test_every_file_exists(file: str) -> None:
    """A path below the package or the repository, or the name of a file in the room that the line names."""
    places = [PACKAGE / file, ROOT / file]
    if "/" not in file:
        places += list(PACKAGE.rglob(file))
    assert any(place.is_file() for place in places)
