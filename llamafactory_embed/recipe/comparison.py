"""`llamafactory-embed recipe show` and `diff`: what a recipe means, and how two differ in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .effective import effective_values, read_recipe_options, same_value
from .reading import read_recipe_file
from .report import Report
from .writing import option_lines, yaml_value


def show_recipe(path: Path, is_full: bool) -> str:
    """The text of a recipe; an option that has another value in the run is marked, and with `is_full` the options
    follow that it leaves to their defaults."""
    report = Report(path)
    options = read_recipe_file(report)
    if options is None:
        raise ValueError(str(report.problems[0]))
    text = path.read_text(encoding="utf-8").rstrip("\n")
    if "tasks" in options:  # for `llamafactory-embed eval`, which has no parser of the host's
        return text
    values = effective_values(read_recipe_options(path))
    marks = {
        report.lines[name]: f"  # runs as {yaml_value(values[name])}"
        for name, value in options.items()
        if name in values and not same_value(value, values[name])
    }
    lines = [line + marks.get(number, "") for number, line in enumerate(text.splitlines(), 1)]
    if is_full:
        lines += ["", "### defaults"]
        for name in sorted(values.keys() - options.keys()):
            lines += option_lines(name, values[name])
    return "\n".join(lines)


def compare_recipes(first: Path, second: Path) -> list[str]:
    """A line for each option whose effect differs; none when both recipes run alike."""
    given = [read_recipe_options(path) for path in (first, second)]
    if any("tasks" in options for options in given):  # of `llamafactory-embed eval`: what is written counts
        values: list[dict[str, Any]] = given
    else:
        values = [effective_values(options) for options in given]
    lines = []
    for name in sorted(values[0].keys() | values[1].keys()):
        left, right = (each.get(name) for each in values)
        if not same_value(left, right):
            shown = [_shown(name, value, options) for value, options in zip((left, right), given, strict=True)]
            lines.append(f"{name}: {shown[0]} → {shown[1]}")
    return lines


def _shown(name: str, value: Any, options: dict[str, Any]) -> str:
    """A value, and whether the recipe says it."""
    text = yaml_value(value) if not isinstance(value, str) or "\n" in value else yaml.safe_dump(value, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...") + ("" if name in options else " (default)")
