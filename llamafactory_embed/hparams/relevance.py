"""Under which other choices an option has an effect: what an option's `when` says, read and checked."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping
from typing import Any

from .option import choices, is_optional, scalar_type
from .suggestion import suggest


class Use(enum.Enum):
    """A condition on an option that has no list of values."""

    ON = "set, and neither 0 nor false"


ON = Use.ON

Conditions = Mapping[str, tuple[Any, ...] | Use]
"""Option → the values under which another one has an effect, or `ON`; all of them must hold."""


def alternatives(declaration: dataclasses.Field[Any]) -> tuple[Conditions, ...]:
    """The conditions of an option's `when`; one of them must hold. Empty: the option always has an effect."""
    when = declaration.metadata.get("when")
    if when is None:
        return ()
    return (when,) if isinstance(when, Mapping) else tuple(when)


def has_effect(declaration: dataclasses.Field[Any], values: Mapping[str, Any]) -> bool:
    """Whether an option means anything beside the values of the stage's options."""
    conditions = alternatives(declaration)
    return not conditions or any(
        all(_holds(condition, values[name]) for name, condition in each.items()) for each in conditions
    )


def _holds(condition: tuple[Any, ...] | Use, value: Any) -> bool:
    return bool(value) if condition is ON else value in typing.cast("tuple[Any, ...]", condition)


def deciding_options(options: type) -> list[str]:
    """The options on which the effect of others depends, in the order of their declaration."""
    deciding = {
        name for field in dataclasses.fields(options) for conditions in alternatives(field) for name in conditions
    }
    return [field.name for field in dataclasses.fields(options) if field.name in deciding]


def condition_problems(options: type) -> list[str]:
    """A sentence for every condition that names what is not there."""
    names = [field.name for field in dataclasses.fields(options)]
    hints = typing.get_type_hints(options) if any(map(alternatives, dataclasses.fields(options))) else {}
    problems = []
    for field in dataclasses.fields(options):
        for name, condition in (pair for each in alternatives(field) for pair in each.items()):
            if name not in names:
                problems.append(f"`when` of `{field.name}` names `{name}`, which is no option{suggest(name, names)}")
            elif condition is not ON:
                problems += _unknown_values(field.name, name, hints[name], condition)
    return problems


def _unknown_values(owner: str, name: str, annotation: object, values: object) -> list[str]:
    if not isinstance(values, tuple) or not values:
        return [f"`when` of `{owner}` must give `{name}` a tuple of values or ON, not {values!r}."]
    allowed: tuple[Any, ...] = (*choices(annotation), *((None,) if is_optional(annotation) else ()))
    if scalar_type(annotation) is bool:
        allowed += (True, False)
    if not choices(annotation) and scalar_type(annotation) is not bool:
        return []  # a number or a text may have any value
    unknown = [value for value in values if value not in allowed]
    return [f"`when` of `{owner}`: {value!r} is no value of `{name}`{suggest(value, allowed)}" for value in unknown]
