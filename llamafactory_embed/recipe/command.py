"""`llamafactory-embed recipe ACTION`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="list all problems of recipes, with their lines")
    check.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a recipe (YAML)")


def run(arguments: argparse.Namespace) -> int:
    """Call the action."""
    from .check import check_files_of_command

    return check_files_of_command(arguments.files, arguments.is_own_process)
