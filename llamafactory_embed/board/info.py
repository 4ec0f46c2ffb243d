"""The line under a widget's label: the option's help and its range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def write_info(metadata: Mapping[str, Any]) -> str:
    """`Factor on the loss. (0 to 100)`, safe to be shown as Markdown."""
    limits = write_range(metadata.get("minimum"), metadata.get("maximum"))
    return escape_tags(metadata["help"]) + (f" ({limits})" if limits else "")


def write_range(minimum: float | None, maximum: float | None) -> str:
    """The bounds of a number, which include their end points."""
    if minimum is None:
        return "" if maximum is None else f"at most {maximum}"
    return f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"


def escape_tags(text: str) -> str:
    """Keep `<mask>` and the like visible. Markdown shows tags inside backticks as they are; elsewhere it would take
    them for HTML and drop them."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
