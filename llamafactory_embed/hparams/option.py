"""How an option is declared, and checked wherever it comes from: recipe, command line or LLaMA Board."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .suggestion import suggest


REQUIRED: Any = dataclasses.MISSING  # the default of an option that must be given; not for the options of a stage

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    label: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    group: str | None = None,
    when: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    **details: Any,
) -> Any:
    """Declare an option: a dataclass field with what recipes, the command line and LLaMA Board need to know about it.

    The choices of an option are its `Literal` annotation; bounds include their end points.

    Args:
        default: The value when nobody sets the option.
        help: One sentence for the help text and for the line under LLaMA Board's widget.
        label: LLaMA Board's label; by default the name made readable.
        minimum: The smallest number allowed.
        maximum: The largest number allowed.
        group: The theme under which LLaMA Board folds the option away; without one it is always seen.
        when: Under which values of other options this one has an effect, `{"pooling": ("latent",)}`, or a list of such
            conditions of which one must hold (`hparams.relevance`). LLaMA Board hides it elsewhere.
        details: Anything else that a reader looks for. Commands (`hparams.command_line`) read `metavar`, `flags`
            (other spellings) and `positional`.
    """
    metadata: dict[str, Any] = {"help": help, "label": label, "minimum": minimum, "maximum": maximum}
    metadata |= {"group": group, "when": when, **details}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of an option that nobody sets; `REQUIRED` where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def union(annotation: object) -> tuple[Any, ...]:
    """The members of a union, or the one type there is."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def choices(annotation: object) -> tuple[Any, ...]:
    """The values of a (possibly optional) `Literal`, without None."""
    literals = [part for part in union(annotation) if typing.get_origin(part) is typing.Literal]
    return tuple(value for literal in literals for value in typing.get_args(literal))


def is_optional(annotation: object) -> bool:
    """Whether None is a value of this type."""
    return type(None) in union(annotation)


def scalar_type(annotation: object) -> type | None:
    """int, float, bool or str where the option is one of them (or None), otherwise None."""
    scalars = [part for part in union(annotation) if part is not type(None)]
    return scalars[0] if len(scalars) == 1 and scalars[0] in (int, float, bool, str) else None


def item_type(annotation: object) -> type | None:
    """The type of the items where the option is a list (or None), otherwise None."""
    for part in union(annotation):
        if typing.get_origin(part) is list:
            return typing.get_args(part)[0]
    return None


def make_options(declaration: type[Options], values: Mapping[str, Any]) -> Options:
    """Make an options dataclass of values that are checked against its declaration before its `__post_init__` relies
    on them; options without a value take their defaults. One ValueError names all problems."""
    fields = dataclasses.fields(declaration)  # type: ignore[arg-type]
    hints = typing.get_type_hints(declaration)
    problems = [find_problem(field, hints[field.name], values[field.name]) for field in fields if field.name in values]
    if any(problems):
        raise ValueError(" ".join(problem for problem in problems if problem is not None))
    return declaration(**values)


def find_problem(field: dataclasses.Field[Any], annotation: object, value: object) -> str | None:
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

    scalar = scalar_type(annotation)
    if scalar is not None and not _is_a(value, scalar):
        return f"`{field.name}` must be {_TYPE_NAMES[scalar]}, not {value!r}."

    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if scalar in (int, float) and (
        (minimum is not None and value < minimum) or (maximum is not None and value > maximum)
    ):
        return f"`{field.name}` must be {_describe_range(minimum, maximum)}, not {value!r}."
    return None


def _is_a(value: object, scalar: type) -> bool:
    """Whether a value is of that type: `temperature: 1` is a float, but `true` is not a number."""
    if isinstance(value, bool):
        return scalar is bool
    return isinstance(value, (int, float) if scalar is float else scalar)


_PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _describe_range(minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return f"at most {maximum}"
    if maximum is None:
        return f"at least {minimum}"
    return f"between {minimum} and {maximum}"
