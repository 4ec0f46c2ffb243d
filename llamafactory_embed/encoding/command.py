"""`llamafactory-embed encode`: vectors of the texts of a file."""

from __future__ import annotations

import argparse
import sys
import time

from ..hparams.command_line import add_options, read_options
from .options import EncodingOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, EncodingOptions)


def run(arguments: argparse.Namespace) -> int:
    """Embed, or calibrate, and say what was written: on stderr, for stdout may be the vectors' way."""
    options = read_options(arguments, EncodingOptions)
    from .encode import calibrate_checkpoint, encode_file  # late: they import torch

    started = time.monotonic()
    if options.calibrate:
        path, measured = calibrate_checkpoint(options)
        tell(f"Ranges of {', '.join(measured.ranges)} dimensions, measured on {measured.texts:,} texts: {path}")
        return 0
    done = encode_file(options, tell)
    seconds = time.monotonic() - started
    skipped = f", {done.skipped:,} bad rows left out" if done.skipped else ""
    tell(
        f"{done.rows:,} vectors of {done.dimensions} dimensions in {options.precision}{skipped}: {done.path} "
        f"({seconds:.0f} s)"
    )
    return 0


def tell(line: str) -> None:
    """A line beside the output."""
    print(line, file=sys.stderr, flush=True)
