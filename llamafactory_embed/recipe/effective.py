"""What a recipe means: the value of every option after the host's parser, defaults included."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.argument_check import (
    list_argument_classes,
    parse_arguments,
    quiet,
    sets_training_options,
    untouched_environment,
)
from ..stages import registry
from .reading import read_recipe_file
from .report import Report


def read_recipe_options(path: Path) -> dict[str, Any]:
    """The options that a file sets; a ValueError for a file that is no recipe."""
    report = Report(path)
    options = read_recipe_file(report)
    if options is None or report.problems:
        raise ValueError(str(report.problems[0]))
    return {str(name): value for name, value in options.items()}


def effective_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option that the run reads, by name, as the host and the stage see it. Options of other stages are left
    out; values that the host itself derives, such as `lora_alpha`, are filled in."""
    with quiet(), untouched_environment():
        is_training = "export_dir" not in options and sets_training_options(options)
        classes = list_argument_classes(is_training)
        known = {each.name for kind in classes for each in dataclasses.fields(kind) if each.init}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ValueError(f"`{unknown[0]}` is not an option: run `llamafactory-embed recipe check` first.")
        try:
            parsed, _ = parse_arguments(dict(options), is_training)
        except Exception as error:  # whatever the host makes of a value is what the run would end with
            raise ValueError(
                f"{' '.join(str(error).split())} (`llamafactory-embed recipe check` says more)"
            ) from error
    values = {
        declared.name: plain_value(getattr(arguments, declared.name))
        for arguments in parsed
        for declared in dataclasses.fields(arguments)
        if declared.init
    }
    return {name: value for name, value in values.items() if name not in foreign_options(values.get("stage"))}


def foreign_options(stage_name: Any) -> set[str]:
    """The options that only other stages have."""
    stages = registry.load_registry().stages
    names = {stage.name: {each.name for each in dataclasses.fields(stage.options)} for stage in stages.values()}
    return set[str]().union(*names.values()) - names.get(stage_name, set())


def plain_value(value: Any) -> Any:
    """A value as a recipe writes it: enumerations by their value, numbers of the host's own types as they are."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain_value(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): plain_value(each) for name, each in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else plain_object(value)


def plain_object(value: Any) -> Any:
    """The host makes objects of some options, such as `accelerator_config`."""
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return plain_value(dataclasses.asdict(value)) if is_record else str(value)


def same_value(left: Any, right: Any) -> bool:
    """Whether two values have the same effect: a list and its names with commas do."""
    return left == right or (_names(left) == _names(right) and isinstance(left, (str, list)))


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value
