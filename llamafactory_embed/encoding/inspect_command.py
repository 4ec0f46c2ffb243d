"""`llamafactory-embed inspect SOURCE`: what a checkpoint is and what can be done with it; no weight is loaded."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass

from ..hparams.command_line import add_options, read_options
from ..hparams.option import REQUIRED, option
from ..hparams.source import SourceOptions


@dataclass(frozen=True)
class InspectOptions(SourceOptions):
    """What is inspected, and how it is shown."""

    source: str = option(
        REQUIRED, "Folder, name on the hub, or name@revision there.", positional=True, metavar="SOURCE"
    )
    json: bool = option(False, "Print JSON instead of a table.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, InspectOptions, ("source", "json"))
    add_options(parser.add_argument_group("how it is to be read"), SourceOptions)


def run(arguments: argparse.Namespace) -> int:
    """Inspect and print."""
    options = read_options(arguments, InspectOptions)
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed greets on stdout, which is for the answer alone
        from ..encoder.inspection import describe_source, inspect_source  # late: they import torch

    found = inspect_source(options.source, options.settings)
    if options.json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(describe_source(found)))
    return 0
