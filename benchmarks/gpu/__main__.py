"""`python -m benchmarks.gpu`: what only a GPU can show, in minutes, one file a step under `benchmarks/results/gpu`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..results_file import RESULTS
from .record import describe_record, read_record
from .steps import STEPS, Step, find_step
from .supervise import Plan, run_all


OUTPUT = RESULTS / "gpu"
REHEARSAL = RESULTS.parent / "rehearsal"
NO_DEVICE = "not run: no CUDA device"


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--steps", nargs="+", metavar="STEP", help=f"only these: {names}")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together (default: 8)")
    parser.add_argument("--again", action="store_true", help="also the steps that have passed")
    parser.add_argument(
        "--rehearse", action="store_true", help=f"every step on the CPU in tiny sizes, into {REHEARSAL.name}/"
    )
    parser.add_argument("--output", type=Path, help="the folder of the files (default: benchmarks/results/gpu)")
    parser.add_argument(
        "--profile", metavar="STEP", help="run this step under torch's profiler and write STEP.profile.txt, no results"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run, or show on a machine without a GPU what was found elsewhere."""
    import torch

    parser = build_parser()
    arguments = parser.parse_args(words)
    try:
        wanted = [arguments.profile] if arguments.profile else arguments.steps
        steps = list(STEPS) if wanted is None else [find_step(name) for name in wanted]
    except ValueError as error:
        parser.error(str(error))

    output = arguments.output or (REHEARSAL if arguments.rehearse else OUTPUT)
    if not arguments.rehearse and not torch.cuda.is_available():
        show(steps, output)
        return 0
    if arguments.profile:
        output = output / "profile"  # what the profiler slows down is no result
    plan = Plan(
        output=output.resolve(),
        device="cpu" if arguments.rehearse else "cuda",
        small=arguments.rehearse,
        minutes=arguments.minutes,
        again=arguments.again or bool(arguments.profile),
        profile=bool(arguments.profile),
    )
    return 0 if run_all(steps, plan) else 1


def show(steps: Sequence[Step], output: Path) -> None:
    """What the files say; nothing is written."""
    for step in steps:
        record = read_record(output / f"{step.name}.json")
        print("\n".join(describe_record(record)) if record else f"{step.name}: {NO_DEVICE}")


if __name__ == "__main__":
    sys.exit(main())
