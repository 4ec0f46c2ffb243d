"""Values of a record's columns: texts, numbers and instructed texts, or what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..problems import BadRowError, check_characters


Record = Mapping[str, Any]

LARGEST_SCORE = 3e38  # scores become float32


def text_of(record: Record, column: str) -> str:
    """The text of a column, which must be there and not be empty."""
    value = record[column]
    if value is None:
        raise BadRowError(f"`{column}` is missing")
    if not isinstance(value, str):
        raise BadRowError(f"`{column}` must be text, not {type_name(value)}")
    if not value.strip():
        raise BadRowError(f"`{column}` is empty")
    return check_characters(value, column)


def optional_text(record: Record, column: str | None) -> str | None:
    """The text of a column that a record may lack or leave empty."""
    value = None if column is None else record.get(column)
    if value is None:
        return None
    if isinstance(value, str):
        return check_characters(value, str(column))
    raise BadRowError(f"`{column}` must be text, not {type_name(value)}")


def list_of_texts(record: Record, column: str, empty_is_none: bool = False) -> tuple[str, ...]:
    """A column that holds one text or a list of them; the empty cell of a table is no negative."""
    value = record[column]
    if empty_is_none and (value is None or value == ""):
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(text_of({column: _without_instruction(item, column)}, column) for item in value)
    return (text_of(record, column),)


def query_of(record: Record, column: str) -> tuple[str | None, str]:
    """The instruction, where the query is a pair of [instruction, text], and the text.

    White space and the full stop at the instruction's end are left out: templates put the mark that follows it.
    """
    value = record[column]
    if not is_instructed(value):
        return None, text_of(record, column)
    instruction, text = value
    instruction = check_characters(instruction, column).strip().removesuffix(".")
    return instruction or None, text_of({column: text}, column)


def is_instructed(value: object) -> bool:
    """Whether a value is [instruction, text], as texts are stored by GritLM (Muennighoff et al. 2024) and ReasonIR."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _without_instruction(item: Any, column: str) -> Any:
    """The text of [instruction, text]; passages of a task that is not symmetric have an empty instruction."""
    if not is_instructed(item):
        return item
    if item[0].strip():
        raise BadRowError(f"a passage of `{column}` has the instruction {item[0]!r}; only queries may have one")
    return item[1]


def scores_of(record: Record, column: str | None, count: int) -> tuple[float, ...] | None:
    """A teacher's scores, one for each of `count` passages."""
    value = None if column is None else record.get(column)
    if value is None or value == "":
        return None
    values = value if isinstance(value, (list, tuple)) else [value]
    if len(values) != count:
        raise BadRowError(f"`{column}` has {len(values)} numbers for {count} passages")
    return tuple(number_of(item, str(column)) for item in values)


def number_of(value: Any, column: str = "ce_score") -> float:
    """A score, if it is a number that float32 can hold."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST_SCORE:  # nor is nan
        raise BadRowError(f"`{column}` must be a number, not {value!r}")
    return number


def type_name(value: object) -> str:
    """A value as error messages tell of it."""
    names = {type(None): "nothing", list: "a list", dict: "an object", bool: "true or false"}
    return names.get(type(value), f"the number {value!r}" if isinstance(value, (int, float)) else repr(value))
