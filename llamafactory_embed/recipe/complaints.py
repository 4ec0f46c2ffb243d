"""The checks of the host and of the stage, continued after the first complaint."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from typing import Any

from ..host.argument_check import (
    build_arguments,
    compare_arguments,
    list_argument_classes,
    untouched_environment,
)
from .machine import remark_on_packages
from .report import Report


def run_host_checks(report: Report, options: dict[str, Any], is_training: bool, is_stage_known: bool) -> None:
    """Build the arguments, then let the host and the stage compare them. They stop at their first complaint: the
    option that it names is removed and the checks run again, until no complaint is left."""
    options, are_built = dict(options), True
    for argument_class in list_argument_classes(is_training):
        attempt = functools.partial(build_arguments, argument_class, options)
        are_built = collect_complaints(report, options, attempt) and are_built

    def compare() -> None:
        remark_on_packages(report, compare_arguments(options, is_training))

    if are_built and is_stage_known:
        collect_complaints(report, options, compare)


def collect_complaints(report: Report, options: dict[str, Any], attempt: Callable[[], Any]) -> bool:
    """Repeat the attempt, each time without the option that the last complaint named; whether it went through."""
    while True:
        try:
            with untouched_environment():
                attempt()
            return True
        except Exception as error:  # whatever the host makes of a value is what the run would end with
            message = " ".join(str(error).split())
            if not isinstance(error, (ValueError, AssertionError)):
                message = f"{type(error).__name__}: {message}"
            culprit = find_culprit(message, options)
            report.problem(culprit, message)
            if culprit in (None, "stage", "model_name_or_path"):
                return False
            del options[culprit]


def find_culprit(message: str, options: Collection[str]) -> str | None:
    """The first option of the recipe that a complaint names: in backticks, after `--` or by an unmistakable name, else
    by a word that might be just that."""
    named = re.findall(r"`(?:--)?(\w+)|--(\w+)|\b([a-z0-9]+_\w+)", message)
    words = [name for groups in named for name in groups]
    words += [word for word in re.findall(r"\w+", message) if word != "stage"]  # "Cannot use PiSSA for current stage"
    return next((word for word in words if word in options), None)
