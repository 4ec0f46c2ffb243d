"""How an option is declared, and checked wherever it comes from: recipe, command line or LLaMA Board."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from .suggestion import suggest


def option(
    default: Any,
    help: str,
    *,
    label: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with what the help text, the checks and LLaMA Board need to know about it.

    The choices of an option are its `Literal` annotation; bounds include their end points.
    """
    metadata = {"help": help, "label": label, "minimum": minimum, "maximum": maximum}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a (possibly optional) `Literal`, without None."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if _is_union(annotation):
        return tuple(value for part in typing.get_args(annotation) for value in choices(part))
    return ()


def is_optional(annotation: Any) -> bool:
    """Whether None is a value of this type."""
    return _is_union(annotation) and type(None) in typing.get_args(annotation)


def scalar_type(annotation: Any) -> type | None:
    """int, float, bool or str where the option is one of them (or None), otherwise None."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    scalars = [part for part in parts if part is not type(None)]
    return scalars[0] if len(scalars) == 1 and scalars[0] in (int, float, bool, str) else None


def item_type(annotation: Any) -> type | None:
    """The type of the items where the option is a list (or None), otherwise None."""
    for part in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        if typing.get_origin(part) is list:
            return typing.get_args(part)[0]
    return None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def make_options(declaration: type, values: Mapping[str, Any]) -> Any:
    """Make an options dataclass of values that were checked against its declaration, before its `__post_init__` relies
    on them; one ValueError with all problems."""
    hints = typing.get_type_hints(declaration)
    problems = []
    for field in dataclasses.fields(declaration):
        problem = find_problem(field, hints[field.name], values[field.name])
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ValueError(" ".join(problems))
    return declaration(**values)


def find_problem(field: dataclasses.Field[Any], annotation: Any, value: Any) -> str | None:
    """What is wrong with one option's value, as a sentence."""
    if value is None:
        return None if is_optional(annotation) else f"`{field.name}` needs a value."

    allowed = choices(annotation)
    if allowed:
        if value in allowed:
            return None
        return f"`{field.name}` must be one of {', '.join(map(str, allowed))}, not {value!r}{suggest(value, allowed)}"

    items = item_type(annotation)
    if items is not None:
        if isinstance(value, list) and all(_is_a(item, items) for item in value):
            return None
        return f"`{field.name}` must be a list of {_PLURALS[items]}, not {value!r}."

    wanted = scalar_type(annotation)
    if wanted is not None and not _is_a(value, wanted):
        return f"`{field.name}` must be {_TYPE_NAMES[wanted]}, not {value!r}."

    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if wanted in (int, float) and (
        (minimum is not None and value < minimum) or (maximum is not None and value > maximum)
    ):
        return f"`{field.name}` must be {_describe_range(minimum, maximum)}, not {value!r}."
    return None


def _is_a(value: Any, wanted: type) -> bool:
    """`temperature: 1` is a fine float, but `true` is no number."""
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


_PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _describe_range(minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return f"at most {maximum}"
    if maximum is None:
        return f"at least {minimum}"
    return f"between {minimum} and {maximum}"
