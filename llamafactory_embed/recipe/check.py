"""`llamafactory-embed recipe check`: read a recipe as the run would, and list everything that is wrong with it.

No model is loaded, no data read, no folder made and no process group started: the host's own argument classes and
checks run on a stand-in for its training arguments that never looks for a device. What depends on the machine, such as
`bf16` without a GPU, is a remark that begins with "here:" and not a problem.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..host.argument_check import list_argument_classes, quiet, sets_training_options
from .complaints import run_host_checks
from .machine import remark_on_machine
from .names import check_option_values
from .pack import check_packed
from .reading import read_recipe_file
from .references import check_datasets, check_files, check_template
from .report import Problem, Report


def print_reports(paths: Sequence[Path]) -> int:
    """Print a line for each problem, or one that says that the recipe is fine; 1 when any has a problem."""
    reports = [inspect_recipe(path) for path in paths]
    for report in reports:
        for problem in sorted(report.problems + report.remarks, key=lambda each: each.line or 0):
            print(problem)
        if not report.problems:
            print(f"{report.path}: fine")
    return 1 if any(report.problems for report in reports) else 0


def check_recipe(path: str | os.PathLike[str]) -> list[Problem]:
    """All problems of a recipe in the order of its lines; none when the run would accept it."""
    return sorted(inspect_recipe(path).problems, key=lambda problem: problem.line or 0)


def inspect_recipe(path: str | os.PathLike[str]) -> Report:
    """Problems of a recipe, and remarks about this machine."""
    report = Report(Path(path))
    options = read_recipe_file(report)
    if options is None:
        return report

    with quiet():
        is_training = "export_dir" not in options and sets_training_options(options)
        argument_classes = list_argument_classes(is_training)
        stage = options.get("stage")
        options = check_option_values(report, options, argument_classes)
        check_template(report, options)
        check_datasets(report, options)
        options = check_files(report, options)
        check_packed(report, options)
        remark_on_machine(report, options)
        run_host_checks(report, options, is_training, is_stage_known=options.get("stage") == stage)
    return report
