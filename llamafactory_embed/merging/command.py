"""`llamafactory-embed merge`: several checkpoints as one."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..hparams.command_line import add_options, read_options
from .options import MergeOptions


if TYPE_CHECKING:
    from .search import Judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, MergeOptions)


def run(arguments: argparse.Namespace) -> int:
    """Merge, with weights that were given or are searched."""
    options = read_options(arguments, MergeOptions)
    from ..export.export import quiet_loaders
    from ..export.folder import check_target
    from .merge import merge_checkpoints
    from .plan import Merge, last_checkpoints
    from .search import search_weights

    quiet_loaders()
    checkpoints = [Path(each) for each in options.checkpoints]
    if options.last is not None:
        checkpoints = last_checkpoints(checkpoints[0], options.last)
    check_target(Path(options.output).absolute(), checkpoints[0].absolute(), options.overwrite)
    weights, note = options.weights, ""
    if options.search is not None:
        judge = judge_by_tasks(options.search, options.dataset_dir)
        print(f"Weights of {', '.join(map(str, checkpoints))}: mean main score on {', '.join(options.search)}")
        weights, score = search_weights(checkpoints, options.method, options.full, judge, print)
        note = (
            f"The weights were chosen by the mean main score on {', '.join(options.search)}, {score:.4f}: this score "
            "is not a held-out one."
        )
    merge = Merge.of(checkpoints, weights, options.method, options.full)
    merge_checkpoints(merge, options.output, options.overwrite, note)
    parts = ", ".join(f"{weight:.3f} {path}" for path, weight in zip(merge.checkpoints, merge.weights, strict=True))
    print(f"Merged to {options.output}{' as one adapter' if merge.stays_adapter else ''}: {parts}.")
    return 0


def judge_by_tasks(tasks: list[str], dataset_dir: str) -> Judge:
    """The mean main score of a checkpoint on tasks of `llamafactory-embed eval`."""
    from ..evaluation.options import make_evaluation_options
    from ..evaluation.report import MAIN
    from ..evaluation.run import evaluate

    def judge(checkpoint: Path) -> float:
        with tempfile.TemporaryDirectory(prefix="judging-") as output:
            values = {"checkpoints": [str(checkpoint)], "tasks": tasks, "output": output, "dataset_dir": dataset_dir}
            summary = evaluate(make_evaluation_options(values, "merge"), report=lambda line: None)
        if summary.failures:
            raise ValueError(f"{checkpoint} could not be judged: {summary.failures[0]}")
        scores = [score for line in summary.lines if line.kind == MAIN for score in line.scores.values()]
        return sum(scores) / len(scores)

    return judge
