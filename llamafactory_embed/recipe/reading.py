"""From the text of a recipe to its options, with the line of each."""

from __future__ import annotations

import io
import re
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from ..foreign import BAD_VALUES, LARGEST_YAML, compose_yaml, read_foreign_text
from .report import Report


def read_recipe_file(report: Report) -> dict[Any, Any] | None:
    """The options as LLaMA-Factory's reader (OmegaConf) sees them; it takes `1e-4` for a number, PyYAML does not."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if report.path.suffix not in (".yaml", ".yml"):
        report.problem(None, "LLaMA-Factory reads recipes from files that end in .yaml or .yml.")
        return None
    try:
        text = read_foreign_text(report.path, LARGEST_YAML)
        root = compose_yaml(text)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            report.problem(None, "a recipe must hold lines of the form `option: value`.")
            return None
        text = note_lines(report, text, root)
        return typing.cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.load(io.StringIO(text))))
    except FileNotFoundError:
        report.problem(None, "there is no such file.")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        report.problem(None, f"not valid YAML: {' '.join(filter(None, (error.context, error.problem)))}.", line)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, *BAD_VALUES) as error:
        report.problem(None, f"cannot be read: {' '.join(str(error).split())}")
    return None


def note_lines(report: Report, text: str, root: yaml.MappingNode) -> str:
    """Remember where each option stands. Of options that are set twice, which the run refuses, the last one counts:
    the others are blanked out of the text that is returned."""
    spans: dict[str, tuple[int, int]] = {}
    for key, value in root.value:
        name, line = key.value, key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            continue
        if name in spans:
            start, end = spans[name]
            text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
            report.problem(name, f"`{name}` is set twice, in line {report.lines[name]} and here.", line)
        report.lines[name] = line
        spans[name] = (key.start_mark.index, value.end_mark.index)
        if isinstance(value, yaml.ScalarNode) and value.style is None:
            report.unquoted[name] = value.value
    return text


def replace_options(text: str, changes: Mapping[str, str | None]) -> str:
    """The text of a recipe with other values of some options; an option without a value is taken out, and the comment
    that stays says so."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # `read_recipe_file` has read it
    spans = [
        (key.start_mark.index, value.end_mark.index, key.value)
        for key, value in root.value
        if isinstance(key, yaml.ScalarNode) and key.value in changes
    ]
    for start, end, name in reversed(spans):
        old = text[start:end]
        kept = old[len(old.rstrip()) :]  # a block of lines ends with its last line's break
        value = changes[name]
        new = f"# {name}: left out" if value is None else f"{name}: {value}"
        text = text[:start] + new + kept + text[end:]
    return text
