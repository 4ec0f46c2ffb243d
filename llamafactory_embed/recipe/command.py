"""`llamafactory-embed recipe ACTION`."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

from ..hparams.command_line import add_options, read_options
from .new import NewRecipeOptions


# The tools of `conversions`, whose tables need not be imported for a help text.
TOOL_NAMES = ("llm2vec", "tdro", "tevatron", "flagembedding", "sentence-transformers", "ms-swift", "diffullama")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list the recipes that come with this package")
    listing.add_argument("words", nargs="*", metavar="WORD", help="only recipes in which each word stands")
    listing.add_argument("--json", action="store_true", help="print JSON")

    show = actions.add_parser("show", help="print a recipe; values that run as others are marked")
    show.add_argument("name", metavar="NAME", help="a name of `recipe list`, or a file")
    show.add_argument("--full", action="store_true", help="also print the options that it leaves to their defaults")

    new = actions.add_parser("new", help="write a commented recipe that fits the memory you have")
    add_options(new, NewRecipeOptions)
    add_output(new)

    check = actions.add_parser("check", help="list all problems of recipes, with their lines")
    check.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a recipe (YAML)")

    diff = actions.add_parser("diff", help="say what differs in effect; exit code 1 if anything does")
    diff.add_argument("first", metavar="A", help="a name of `recipe list`, or a file")
    diff.add_argument("second", metavar="B", help="a name of `recipe list`, or a file")

    pack = actions.add_parser("pack", help="make one file to share: recipe, data fingerprints, versions, revision")
    pack.add_argument("file", metavar="RECIPE", type=Path, help="a recipe (YAML)")
    add_output(pack)

    convert = actions.add_parser("convert", help="write a recipe from what another tool was told")
    convert.add_argument("file", metavar="OLD_FILE", type=Path, help="a JSON or YAML file, or a script with a command")
    convert.add_argument("--from", dest="tool", choices=TOOL_NAMES, help="the tool, if its flags leave a doubt")
    add_output(convert)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a file is written."""
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="file to write (default: the terminal)")


def run(arguments: argparse.Namespace) -> int:
    """Call the action. A process that is here for nothing else does not import what a recipe's check does not use; in
    the rare case that somebody needs it after all, the action starts again in a process with everything."""
    from ..host.light_imports import StandInUsedError, are_stand_ins_enough, stand_ins

    is_light = arguments.is_own_process and are_stand_ins_enough()
    try:
        with stand_ins() if is_light else contextlib.nullcontext():
            return act(arguments)
    except StandInUsedError:
        again = "import sys; from llamafactory_embed.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run([sys.executable, "-c", again, *sys.argv[1:]]).returncode


def act(arguments: argparse.Namespace) -> int:
    """Do what was asked for; each action imports its own modules."""
    match arguments.action:
        case "list":
            from .catalogue import format_examples, list_examples

            examples = list_examples(arguments.words)
            print(format_examples(examples, arguments.json))
            return 0 if examples else 1
        case "show":
            from .catalogue import find_recipe
            from .comparison import show_recipe

            print(show_recipe(find_recipe(arguments.name), arguments.full))
            return 0
        case "new":
            from .new import new_recipe

            write_or_print(new_recipe(read_options(arguments, NewRecipeOptions)), arguments.output)
            return 0
        case "diff":
            from .catalogue import find_recipe
            from .comparison import compare_recipes

            lines = compare_recipes(find_recipe(arguments.first), find_recipe(arguments.second))
            print("\n".join(lines) if lines else "no difference in effect")
            return 1 if lines else 0
        case "pack":
            from .pack import pack_recipe

            write_or_print(pack_recipe(arguments.file), arguments.output)
            return 0
        case "convert":
            from .convert import convert_file

            write_or_print(convert_file(arguments.file, arguments.tool), arguments.output)
            return 0
    from .check import print_reports

    return print_reports(arguments.files)


def write_or_print(text: str, path: Path | None) -> None:
    """A whole file, or the terminal."""
    from ..files import write_text

    if path is None:
        print(text, end="")
    else:
        write_text(path, text)
        print(f"wrote {path}", file=sys.stderr)
