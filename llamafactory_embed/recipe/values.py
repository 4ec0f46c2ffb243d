"""Whether a value can be one of LLaMA-Factory's options, and which was probably meant where it cannot."""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any

import yaml

from ..hparams.option import choices, is_optional, union
from ..hparams.suggestion import nearest, suggest


# Options of the host that name one thing or several: text with commas, or a list.
COMMA_LISTS: dict[str, Any] = {
    "interleave_probs": list[float | str],
    **dict.fromkeys(("dataset", "eval_dataset", "lora_target", "oft_target", "additional_target"), list[str]),
    **dict.fromkeys(("freeze_trainable_modules", "freeze_extra_modules"), list[str]),
    **dict.fromkeys(("galore_target", "apollo_target"), list[str]),
}

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


def find_host_problem(
    declared: dataclasses.Field[Any], annotation: object, value: object, plain: str | None
) -> str | None:
    """What is wrong with the value of one option of LLaMA-Factory; `plain` is how it is written if without quotes."""
    name = declared.name
    if value is None:
        is_fine = declared.default is None or is_optional(annotation)
        return None if is_fine else f"`{name}` needs a value, or must be left out."

    allowed = (*choices(annotation), *enumerated(annotation))
    if allowed:
        if value in allowed:
            return None
        hint = suggest(value, map(str, allowed))
        if isinstance(value, bool) and plain is not None and plain.lower() not in ("true", "false"):
            hint = f": YAML reads {plain} as {str(value).lower()}, put it in quotes."
        return f"`{name}` must be one of {', '.join(map(str, allowed))}, not {value!r}{hint}"

    if fits(annotation, value) or (name in COMMA_LISTS and fits(COMMA_LISTS[name], value)):
        return None
    hint = "."
    if isinstance(value, str) and fits(annotation, 1) and is_number(value):
        hint = ": take the quotes off."
    elif isinstance(value, float) and value.is_integer() and fits(annotation, 1):
        hint = f": write {int(value)}."
    elif isinstance(value, (bool, int, float)) and fits(annotation, ""):
        hint = ": put it in quotes."
    return f"`{name}` must be {describe_type(annotation)}, not {value!r}{hint}"


def guess_value(annotation: object, value: object, plain: str | None) -> Any:
    """The value that was probably meant in the place of a wrong one, or None."""
    allowed = (*choices(annotation), *enumerated(annotation))
    if allowed:
        return plain if plain in allowed else nearest(value, allowed)
    if isinstance(value, str):
        candidates = [yaml.safe_load(value)] if value.lower() in ("true", "false") else []
        candidates += [float(value)] if is_number(value) else []
    else:
        candidates = [str(value)]
    candidates += [int(each) for each in (value, *candidates) if isinstance(each, float) and each.is_integer()]
    return next((each for each in candidates if fits(annotation, each)), None)


def enumerated(annotation: object) -> tuple[Any, ...]:
    """The values of the enumerations in an annotation; the host writes `SchedulerType | str` for one of them."""
    kinds = [part for part in union(annotation) if isinstance(part, type) and issubclass(part, enum.Enum)]
    return tuple(member.value for kind in kinds for member in kind)


def fits(annotation: object, value: object) -> bool:
    """Whether the host can use the value for an option of that type."""
    for part in union(annotation):
        kind = typing.get_origin(part) or part
        if kind is bool:
            is_fit = isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
        elif kind in (int, float):
            is_fit = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        elif kind is list:
            (inner,) = typing.get_args(part)
            is_fit = isinstance(value, list) and all(fits(inner, each) for each in value)
        elif kind in (str, dict):
            is_fit = isinstance(value, kind)
        else:  # a class that a recipe cannot hold; or None, which the caller has dealt with
            is_fit = isinstance(kind, type) and issubclass(kind, enum.Enum) and value in enumerated(kind)
        if is_fit:
            return True
    return False


def is_number(text: str) -> bool:
    """Whether a text would be a number without its quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def describe_type(annotation: object) -> str:
    """The types of an option in words."""
    kinds = [typing.get_origin(part) or part for part in union(annotation)]
    return " or ".join(TYPE_NAMES.get(kind, "a mapping") for kind in kinds if kind is not type(None))
