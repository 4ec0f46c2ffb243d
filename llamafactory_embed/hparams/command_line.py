"""From an options dataclass to the arguments of a command, and from what was typed to the dataclass.

Names, defaults, choices and help texts are those of the declarations: an option is written down once.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .option import REQUIRED, Options, choices, default_of, is_optional, item_type, make_options, scalar_type, union


def add_options(
    parser: argparse._ActionsContainer,
    declaration: type,
    names: Collection[str] | None = None,
    *,
    with_defaults: bool = True,
) -> None:
    """Add the options of a dataclass, or those of them that are named, to a parser or to a group of it.

    `with_defaults=False` leaves options that are not typed out of the namespace, for commands that also read a recipe.
    """
    annotations = typing.get_type_hints(declaration)
    for field in dataclasses.fields(declaration):
        if names is None or field.name in names:
            flags, details = describe_argument(field, annotations[field.name])
            if not with_defaults:
                details["default"] = argparse.SUPPRESS
                details.pop("required", None)
            parser.add_argument(*flags, **details)


def read_options(arguments: argparse.Namespace, declaration: type[Options]) -> Options:
    """The dataclass, made and checked, of the options that a namespace holds."""
    names = {field.name for field in dataclasses.fields(declaration)}  # type: ignore[arg-type]
    return make_options(declaration, {name: value for name, value in vars(arguments).items() if name in names})


def flag(field: dataclasses.Field[Any]) -> str:
    """How an option is written on the command line: a switch that is on by default gets a `--no-…`."""
    prefix = "--no-" if field.default is True else "--"
    return prefix + field.name.replace("_", "-")


def describe_argument(field: dataclasses.Field[Any], annotation: object) -> tuple[list[str], dict[str, Any]]:
    """What `add_argument` is called with for one option."""
    metadata = field.metadata
    default = default_of(field)
    details: dict[str, Any] = {"help": metadata["help"].replace("%", "%%")}
    if metadata.get("positional"):
        details["metavar"] = metadata.get("metavar") or field.name.upper()
        if item_type(annotation) is not None:
            details["nargs"] = "+"
        elif default is not REQUIRED:
            details |= {"nargs": "?", "default": default, "type": Path if Path in union(annotation) else str}
        return [field.name], details

    flags = [flag(field), *metadata.get("flags", ())]
    details["dest"] = field.name
    if default is REQUIRED:
        details["required"] = True
    else:
        details["default"] = default
    if default is False:
        return flags, details | {"action": "store_true"}
    if default is True:
        return flags, details | {"action": "store_false", "help": f"Switch this off: {details['help']}"}
    if scalar_type(annotation) is bool and is_optional(annotation):
        return flags, details | {"action": argparse.BooleanOptionalAction}

    if default not in (REQUIRED, None, [], ""):
        details["help"] += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
    if choices(annotation):
        return flags, details | {"choices": choices(annotation)}

    item, scalar = item_type(annotation), scalar_type(annotation)
    details["metavar"] = metadata.get("metavar") or _metavar(field.name, item or scalar)
    if item is not None:
        return flags, details | {"type": item, "nargs": "+"}
    return flags, details | {"type": Path if Path in union(annotation) else scalar or str}


def _metavar(name: str, kind: type | None) -> str:
    """What stands for a value in the usage: N for a number, else the last word of the option's name."""
    return "N" if kind in (int, float) else name.rpartition("_")[2].upper()
