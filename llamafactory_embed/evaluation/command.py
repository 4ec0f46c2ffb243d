"""`llamafactory-embed eval`: judge checkpoints on the field's benchmarks, and on local data."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..foreign import read_json_object
from ..hparams.command_line import add_options
from .groups import GROUPS
from .options import EvaluationOptions, options_of


RECIPE_ENDINGS = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of an evaluation recipe; those that are typed win over the recipe's."""
    parser.epilog = "Groups of tasks: " + "; ".join(f"{name}: {group.title}" for name, group in GROUPS.items()) + "."
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(EvaluationOptions)}
    parser.add_argument(
        "what", nargs="*", metavar="CHECKPOINT | RECIPE.yaml", help=f"{helps['checkpoints']} Or one recipe."
    )
    add_options(parser, EvaluationOptions, helps.keys() - {"checkpoints", "prompts"}, with_defaults=False)
    parser.add_argument(
        "--prompts", nargs="+", metavar="KEY=TEXT", help=f"{helps['prompts']} Or the path of a JSON file."
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table; 1 when a task failed."""
    options = read_arguments(arguments)
    require_mteb()
    import datasets

    datasets.disable_progress_bars()  # mteb shows one for every step; ours say what is embedded
    from .report import format_summary
    from .run import evaluate

    summary = evaluate(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    if summary.lines:
        print(format_summary(summary))
    print(f"\nResults: {options.output}")
    for failure in summary.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if summary.failures else 0


def read_arguments(arguments: argparse.Namespace) -> EvaluationOptions:
    """Options from the command line, over those of a recipe if one is named."""
    recipes = [word for word in arguments.what if word.endswith(RECIPE_ENDINGS)]
    if recipes and len(arguments.what) > 1:
        raise ValueError(f"{recipes[0]} is a recipe, which names its checkpoints itself: give no others beside it.")
    names = {each.name for each in dataclasses.fields(EvaluationOptions)}
    values: dict[str, Any] = {
        name: value for name, value in vars(arguments).items() if name in names and value is not None
    }
    if "prompts" in values:
        values["prompts"] = read_prompts(values["prompts"])
    if not recipes and arguments.what:
        values["checkpoints"] = arguments.what
    return options_of(values, Path(recipes[0]) if recipes else None)


def read_prompts(words: list[str]) -> dict[str, str]:
    """`KEY=TEXT` pairs, or a JSON file with such pairs."""
    if len(words) == 1 and "=" not in words[0]:
        path = Path(words[0])
        if not path.is_file():
            raise ValueError(f"`--prompts {words[0]}` is neither KEY=TEXT nor a JSON file.")
        try:
            return read_json_object(path, "`--prompts` names it.")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}.") from error
    pairs = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"`--prompts {word}` must be KEY=TEXT.")
        pairs[key] = text
    return pairs


def require_mteb() -> None:
    """mteb is in the extra `eval`."""
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise ValueError("Evaluation needs mteb: pip install 'llamafactory-embed[eval]'.") from error
