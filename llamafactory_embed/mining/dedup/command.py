"""`llamafactory-embed dedup`: take test queries out of training data."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from ...hparams.command_line import add_options, read_options
from .options import DedupOptions


WIDTH = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, DedupOptions)


def run(arguments: argparse.Namespace) -> int:
    """Deduplicate, then show what was left out."""
    from .deduplicate import deduplicate  # late: it imports the readers

    options = read_options(arguments, DedupOptions)
    print("\n".join(describe_duplicates(deduplicate(options), options.examples)))
    return 0


def describe_duplicates(report: dict[str, Any], examples: int) -> list[str]:
    """The report as a table, and some of the duplicates."""
    lines = [
        f"\n{report['rows']:,} rows, {report['dropped']:,} left out, {report['kept']:,} in {report['output']}",
        "",
    ]
    lines.append(f"  {'test set':<40} {'queries':>10} {'left out':>10}")
    for name, queries in report["test_queries"].items():
        lines.append(f"  {name:<40} {queries:>10,} {report['dropped_by_test_set'][name]:>10,}")
    for each in report["duplicates"][:examples]:
        lines += ["", f"  {each['row']}  {each['method']}, {each['nearness']}"]
        lines.append(f"    {_short(each['query'])}")
        lines.append(f"    {_short(each['test_query'])}  ({each['test_row']})")
    return lines


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" …")
