"""Each option of a recipe alone: does it exist, and may it have that value?"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from typing import Any

from ..host.vocabulary import is_switched_on
from ..hparams.option import find_problem
from ..hparams.suggestion import nearest, suggest
from ..stages import registry
from .report import Report
from .values import find_host_problem, guess_value


# What people write into recipes although LLaMA-Factory reads it from the environment.
ENVIRONMENT_VARIABLES = {"use_ray": "USE_RAY=1", "force_torchrun": "FORCE_TORCHRUN=1"}


def check_option_values(report: Report, options: dict[Any, Any], argument_classes: list[type]) -> dict[str, Any]:
    """Report unknown options and wrong values. Returned are the options as they were probably meant, without those
    that cannot be guessed, so that the checks that follow complain about nothing twice."""
    registered = registry.load_registry()
    of_stages = {each.name for stage in registered.stages.values() for each in dataclasses.fields(stage.options)}
    known = {
        declared.name: (declared, annotations[declared.name])
        for argument_class in argument_classes
        for annotations in (typing.get_type_hints(argument_class),)
        for declared in dataclasses.fields(argument_class)
        if declared.init
    }
    meant: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            name = report_unknown(report, name, known)
            if name is None or name in options:
                continue

        declared, annotation = known[name]
        plain = report.unquoted.get(name)
        sentence = find_problem(declared, annotation, value) if name in of_stages else None
        sentence = sentence or find_host_problem(declared, annotation, value, plain)
        if name == "stage" and isinstance(value, str) and value in registered.problems:
            sentence = registered.problems[value]
        elif name == "stage" and sentence and value in list(registered.stages):
            sentence = f"`stage: {value}` needs the plugin, which is off here: see `llamafactory-embed doctor`."
        if sentence is None:
            meant[name] = value
            continue
        report.problem(name, sentence)
        guess = guess_value(annotation, value, plain)
        if guess is not None and name not in of_stages:
            meant[name] = guess

    if meant.get("stage") != options.get("stage"):  # which stage's options belong here is unknown
        meant = {name: value for name, value in meant.items() if name not in of_stages}
    if meant.get("model_name_or_path") is None:
        if "model_name_or_path" not in report.lines:
            report.problem(None, "`model_name_or_path` is missing.")
        meant["model_name_or_path"] = "model"
    return meant


def report_unknown(report: Report, name: object, known: Collection[str]) -> str | None:
    """Report an unknown option, and return the one that was probably meant."""
    if is_switched_on("ALLOW_EXTRA_ARGS"):
        report.remark(name, f"`{name}` is not an option; ALLOW_EXTRA_ARGS makes the run ignore it.")
        return None
    if name in ENVIRONMENT_VARIABLES:
        variable = ENVIRONMENT_VARIABLES[name]
        report.problem(name, f"`{name}` is not an option: set the environment variable {variable} instead.")
        return None
    report.problem(name, f"unknown option `{name}`{suggest(name, known)}")
    meant = nearest(name, known)
    if meant is not None and meant not in report.lines:
        report.lines[meant] = report.lines.get(name, 0)
    return meant
