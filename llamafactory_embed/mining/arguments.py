"""Command-line options from the fields of a dataclass, so that options, defaults and help stand in one place."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from ..hparams.option import choices, item_type, make_options, scalar_type


REQUIRED: Any = dataclasses.MISSING  # as default of an `option` that must be given


def add_dataclass_arguments(parser: argparse.ArgumentParser, declaration: type) -> None:
    """An option `--like-this` for every field `like_this`."""
    annotations = typing.get_type_hints(declaration)
    for field in dataclasses.fields(declaration):
        _add(parser, field, annotations[field.name])


def read_dataclass(arguments: argparse.Namespace, declaration: type) -> Any:
    """The dataclass that the parsed arguments give, checked."""
    return make_options(declaration, {each.name: getattr(arguments, each.name) for each in _fields(declaration)})


def flag(field: dataclasses.Field[Any]) -> str:
    """How a field is written on the command line."""
    return f"--{field.name.replace('_', '-')}"


def _fields(declaration: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(declaration)


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], annotation: Any) -> None:
    if annotation is bool:
        parser.add_argument(flag(field), action="store_true", help=field.metadata["help"])
        return
    default: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is REQUIRED
    help = field.metadata["help"].replace("%", "%%")
    if not required and default is not None:
        help += f" (default: {' '.join(default) if isinstance(default, list) else default})"
    more: dict[str, Any] = {"type": scalar_type(annotation) or str, "metavar": field.name.upper()}
    if choices(annotation):
        more = {"choices": choices(annotation)}
    elif item_type(annotation) is not None:
        more = {"type": item_type(annotation), "metavar": field.name.upper(), "nargs": "+"}
    parser.add_argument(flag(field), default=None if required else default, required=required, help=help, **more)
