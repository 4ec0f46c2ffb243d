"""Option values as words of a command line."""

from __future__ import annotations

import json
import shlex
from typing import Any


def is_sayable(value: Any) -> bool:
    """The argument parser has no word for None, and none for an empty list; a recipe has."""
    return value is not None and value != []


def write_words(value: Any) -> str:
    """The words behind `--option`, quoted for the shell where that is needed."""
    if isinstance(value, list):
        return " ".join(write_words(item) for item in value)
    if isinstance(value, dict):
        return shlex.quote(json.dumps(value, ensure_ascii=False))
    return shlex.quote(str(value))


def write_recipe_line(name: str, value: Any) -> str:
    """The same option as a line of a recipe."""
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"
