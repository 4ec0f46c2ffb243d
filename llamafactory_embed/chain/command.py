"""`llamafactory-embed chain`: run a chain's file, and write its page."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..hparams.command_line import add_options, read_options
from ..hparams.option import REQUIRED, option


@dataclass(frozen=True)
class ChainOptions:
    """What runs."""

    chain: str = option(REQUIRED, "YAML file with `output_dir` and `steps`.", positional=True)
    dry_run: bool = option(False, "Print the commands, and run nothing.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, ChainOptions)


def run(arguments: argparse.Namespace) -> int:
    """Run the steps that are left, and write the page about all of them."""
    from .definition import read_chain
    from .report import write_chain_page
    from .run import run_chain, shown_command

    options = read_options(arguments, ChainOptions)
    chain = read_chain(Path(options.chain))
    if options.dry_run:
        for step in chain.steps:
            print(f"{step.number}/{len(chain.steps)} {step.name}: {shown_command(step)}")
        return 0
    done = run_chain(chain, lambda line: print(line, flush=True))
    print(f"The page about this chain: {write_chain_page(chain, done)}")
    return 0
