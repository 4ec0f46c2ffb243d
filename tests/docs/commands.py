"""docs/commands.md: every argument of every command, as the parsers declare them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from llamafactory_embed.cli import COMMANDS, build_parser


TOP = """# Commands, every option

What `llamafactory-embed COMMAND --help` says, for all commands. Explanations and examples:
[cli.md](cli.md) and the pages it names. This page is generated (`make docs`) from the parsers, and a test compares the
two.
"""


def page() -> str:
    """The whole page."""
    return "\n".join((TOP, *(section for name in COMMANDS for section in _sections(name))))


def _sections(name: str) -> Iterator[str]:
    parser = _subcommands(build_parser(name))[name]
    yield f"## `{name}`\n"
    yield f"{COMMANDS[name].help[0].upper()}{COMMANDS[name].help[1:]}.\n"
    actions = _subcommands(parser)
    yield from _table(parser)
    for action, subparser in actions.items():
        yield f"### `{name} {action}`\n"
        yield from _table(subparser)


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _table(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = [_row(action) for action in parser._actions if _is_shown(action)]
    if rows:
        yield "\n".join(["| argument | value | meaning |", "|---|---|---|", *rows, ""])


def _is_shown(action: argparse.Action) -> bool:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return not isinstance(action, hidden) and action.help is not argparse.SUPPRESS


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`".replace(
        "|", "\\|"
    )
    meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
    if action.required and action.option_strings:
        meaning += " (required)"
    return f"| {names} | {_value(action)} | {meaning} |"


def _value(action: argparse.Action) -> str:
    """What is written behind an option's name; for arguments without a name, how many there may be."""
    if action.nargs == 0:
        return ""
    many = " …" if action.nargs in ("+", "*") else ""
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices) + many
    if not action.option_strings:
        return "one or more" if action.nargs == "+" else "optional" if action.nargs in ("?", "*") else ""
    return f"{action.metavar or action.dest.upper()}{many}".replace("|", "\\|")
