"""The menu of the documentation site, as mkdocs.yml says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def settings() -> dict[str, Any]:
    """mkdocs.yml."""
    return dict(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8")))


def navigation() -> list[tuple[str, str]]:
    """The pages of the menu in its order: title, and path below docs/."""
    return [page for entry in settings()["nav"] for page in _pages(entry, "")]


def _pages(entry: Any, section: str) -> Iterator[tuple[str, str]]:
    """An entry is a path, or a title with a path or with entries."""
    if isinstance(entry, str):
        yield section, entry
        return
    ((title, inside),) = entry.items()
    for each in inside if isinstance(inside, list) else [inside]:
        yield from _pages(each, title)
