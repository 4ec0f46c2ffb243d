"""`llamafactory-embed verify`: a running server against the checkpoint that it should serve."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ...hparams.command_line import add_options, read_options
from ...hparams.option import REQUIRED, option


@dataclass(frozen=True)
class ServerCheckOptions:
    """How a server is asked, and what counts as the same."""

    model: str | None = option(None, "Name of the model on the server; empty: the first one that it lists.")
    api_key: str = option(
        "API_KEY", "Environment variable that holds the server's API key, if it has one.", metavar="VARIABLE"
    )
    query_task: str | None = option(
        None, "Task whose instruction is the prompt `query`, if there are several; as it was exported.", metavar="TASK"
    )
    dimensions: int | None = option(
        None, "Size of the server's vectors, if the export has cut them (`export --dimensions`).", metavar="SIZE"
    )
    tolerance: float = option(
        5e-3,
        "Largest difference of a number in a vector of unit length that half precision may explain; a server in "
        "float32 stays below 1e-5.",
        minimum=0,
    )
    device: str = option("cpu", "Device on which the checkpoint embeds for comparison.")
    timeout: float = option(120.0, "Seconds to wait for an answer.", minimum=1)


@dataclass(frozen=True)
class ComparedServer:
    """Which checkpoint, and which server."""

    folder: str = option(REQUIRED, "Folder of the checkpoint, or of its export.", positional=True)
    server: str = option(REQUIRED, "Address of a server in OpenAI's format.", metavar="URL")


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
