"""One table for each tool that people come from: old flag → our options, or why there is none; and the tables as
Markdown, for the pages about moving here."""

from __future__ import annotations

from collections.abc import Iterable

from .diffullama import DIFFULLAMA
from .flagembedding import FLAG_EMBEDDING
from .llm2vec import LLM2VEC
from .ms_swift import MS_SWIFT
from .sentence_transformers import SENTENCE_TRANSFORMERS
from .table import Flag, Tool
from .tdro import TDRO
from .tevatron import TEVATRON
from .training_arguments import SAME, TRAINING_ARGUMENTS


TOOLS: dict[str, Tool] = {
    tool.key: tool for tool in (LLM2VEC, TDRO, TEVATRON, FLAG_EMBEDDING, SENTENCE_TRANSFORMERS, MS_SWIFT, DIFFULLAMA)
}


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
