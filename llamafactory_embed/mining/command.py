"""`llamafactory-embed mine`: hard negatives for a data set."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from typing import Any

from ..hparams.command_line import add_options, read_options
from .options import MiningOptions


WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, MiningOptions)


def run(arguments: argparse.Namespace) -> int:
    """Mine, then show what was found."""
    from .mine import mine  # late: it imports torch

    summary = mine(read_options(arguments, MiningOptions))
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(describe_mining(summary)))
        print(f"\nThe entry for dataset_info.json:\n{json.dumps(summary['entry'], indent=2, ensure_ascii=False)}")
    return 0


def describe_mining(summary: dict[str, Any]) -> list[str]:
    """The summary as a table, and examples."""
    lines = [""]
    for name, value in summary.items():
        if name == "candidates dropped":
            lines += [f"  {f'candidates dropped, {reason}':<58} {count:>10,}" for reason, count in value.items()]
        elif isinstance(value, int):
            lines.append(f"  {name:<58} {value:>10,}")
        elif isinstance(value, float):
            lines.append(f"  {name:<58} {value:>10.3f}")
    for example in summary["examples"]:
        lines += ["", f"  {example['where']}", _line("query", example["query"])]
        lines.append(_line(f"+ {example['similarity']:.3f}", example["positive"]))
        lines += [_line(f"- {each['similarity']:.3f}", each["text"]) for each in example["negatives"]]
    return lines


def _line(label: str, text: str) -> str:
    return f"    {label:<8} {textwrap.shorten(text, WIDTH, placeholder=' …')}"
