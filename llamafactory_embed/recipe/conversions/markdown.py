"""The tables as Markdown, for the pages about moving here."""

from __future__ import annotations

from collections.abc import Iterable

from .table import Flag, Tool
from .training_arguments import SAME, TRAINING_ARGUMENTS


def render_tool(tool: Tool) -> str:
    """A tool's own flags in a table; those of transformers' Trainer, which all tools share, are `render_trainer`'s."""
    shared = {id(flag) for flag in TRAINING_ARGUMENTS}
    return _table(tool.title, (flag for flag in tool.flags if id(flag) not in shared))


def render_trainer() -> str:
    """The flags of transformers' Trainer that change their name or have no counterpart; the others stay."""
    return _table("transformers' Trainer", (flag for flag in TRAINING_ARGUMENTS if flag.name not in SAME))


def _table(title: str, flags: Iterable[Flag]) -> str:
    """Flags with a counterpart first, each group in its table's order."""
    rows = list({flag.name: flag for flag in flags}.values())
    lines = [f"| {title} | here | how |", "|---|---|---|"]
    for flag in sorted(rows, key=lambda each: not each.ours):
        ours = ", ".join(f"`{name}`" for name in flag.ours) or "–"
        lines.append(f"| `{flag.name}` | {ours} | {_escaped(flag.says or 'as it is')} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
