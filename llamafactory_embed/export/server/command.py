"""`llamafactory-embed verify`: a running server against the checkpoint that it should serve."""

from __future__ import annotations

import argparse

from ...hparams.command_line import add_options, read_options
from .options import ComparedServer, ServerCheckOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, the server, and how it is asked."""
    add_options(parser, ComparedServer)
    add_options(parser, ServerCheckOptions)


def run(arguments: argparse.Namespace) -> int:
    """Print what differs; 1 if anything does."""
    return report_server(arguments.folder, arguments.server, read_options(arguments, ServerCheckOptions))


def report_server(folder: str, server: str, options: ServerCheckOptions) -> int:
    """Compare, print, and return the exit code."""
    from ..export import quiet_loaders
    from .compare import compare_server

    quiet_loaders()
    found = compare_server(folder, server, options)
    for line in found.describe():
        print(line)
    return 1 if found.differences else 0
