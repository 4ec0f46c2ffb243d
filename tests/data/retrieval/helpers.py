"""What the tests of retrieval data share: the small files beside them, and tasks made in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamafactory_embed.data.registry import HubOptions
from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.data.retrieval.reader import tasks_of_entries
from llamafactory_embed.data.retrieval.rows import Row, Task


FILES = Path(__file__).parents[1] / "files"
FOLDERS = Path(__file__).parents[1] / "folders"
"""Data that lie in several files."""


def read_task(file_name: str, folder: Path = FILES, **settings: Any) -> Task:
    entry = make_entry("it", {"file_name": file_name, "formatting": "retrieval", **settings}, str(folder))
    (task,) = tasks_of_entries([entry], None, False, 0, 42, HubOptions())
    return task


def json_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FILES / name).read_text(encoding="utf-8").splitlines()]


def without_place(rows: Any) -> list[tuple[Any, ...]]:
    return [(row.query, row.positives, row.negatives, row.scores, row.instruction) for row in rows]


def make_task(name: str, size: int, negatives: int = 3, **settings: Any) -> Task:
    """A task of which no text occurs twice."""
    rows = [
        Row(f"{name} q{n}", (f"{name} p{n}", f"{name} r{n}"), tuple(f"{name} n{n}.{k}" for k in range(negatives)))
        for n in range(size)
    ]
    return Task(name, rows, **settings)


TASKS = [make_task("big", 90), make_task("middle", 40), make_task("small", 21)]
