"""What the page of a stage says of its options, and what the options are: the two must be the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path


PAGES = Path(__file__).parents[2] / "docs"

Options = list[tuple[str, str]]


def explained_options(page: str) -> Options:
    """Names and defaults in the page's tables `| option | default | meaning |`, sorted; a meaning must be there."""
    text = (PAGES / page).read_text("utf-8")
    tables = re.findall(r"^\| option \| default \|.*?(?=\n\n)", text, flags=re.MULTILINE | re.DOTALL)
    rows = r"^\| `(\w+)` \|\s*([^|]*?)\s*\| ."
    return sorted(row for table in tables for row in re.findall(rows, table, flags=re.MULTILINE))


def declared_options(options: type, explained_elsewhere: type | None = None) -> Options:
    """Names and defaults of a dataclass, sorted, as a page writes them; without those that another one has, too."""
    others = {field.name for field in dataclasses.fields(explained_elsewhere)} if explained_elsewhere else set()
    values = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(options)
    }
    return sorted((name, written(value)) for name, value in values.items() if name not in others)


def written(default: object) -> str:
    """A default as a page writes it."""
    if default is None or default == []:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
