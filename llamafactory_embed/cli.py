"""The console script `llamafactory-embed`: everything around a run. Training itself is `llamafactory-cli train`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from . import __version__
from .autoload import let_idle_threads_sleep


class Command(NamedTuple):
    """A subcommand lives in a module with `add_arguments(parser)` and `run(arguments) -> exit code`."""

    module: str
    help: str


# Of disks, not of programs.
DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG,
    errno.ENOENT,
)  # fmt: skip

# Set to 1, it shows in front of an error's sentence where in the program it came from.
TRACEBACK_VARIABLE = "LLAMAFACTORY_EMBED_TRACEBACK"

# One line a command. The module is imported only when its command is called.
COMMANDS = {
    "doctor": Command("llamafactory_embed.doctor", "check this installation: versions, plugin, attention, devices"),
    "init": Command("llamafactory_embed.materials.command", "write the recipes and the bundled data into a folder"),
    "demo": Command("llamafactory_embed.demo.run", "train, evaluate and query a small embedder on this machine"),
    "eval": Command("llamafactory_embed.evaluation.command", "evaluate checkpoints with mteb and on your data"),
    "encode": Command("llamafactory_embed.encoding.command", "write the vectors of a file of texts"),
    "export": Command("llamafactory_embed.export.command", "write a checkpoint for sentence-transformers and servers"),
    "merge": Command("llamafactory_embed.merging.command", "average checkpoints, or interpolate between two"),
    "chain": Command("llamafactory_embed.chain.command", "run recipes, merges, evaluations and exports in order"),
    "inspect": Command("llamafactory_embed.encoding.inspect_command", "say what a checkpoint is and is good for"),
    "verify": Command("llamafactory_embed.export.server.command", "compare a running server with its checkpoint"),
    "serve": Command("llamafactory_embed.serve.embeddings.command", "serve embeddings in OpenAI's format"),
    "recipe": Command("llamafactory_embed.recipe.command", "find, write, check, compare, pack and convert recipes"),
    "mine": Command("llamafactory_embed.mining.command", "mine hard negatives for a data set"),
    "sample": Command("llamafactory_embed.sampling.command", "write texts with a diffusion language model"),
    "dedup": Command("llamafactory_embed.mining.dedup.command", "remove test queries from training data"),
}

DESCRIPTION = """\
Turn any language model, autoregressive or diffusion, into a text embedder.

Training stages run in LLaMA-Factory:   llamafactory-cli train RECIPE.yaml
This command is for what happens around them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 when all is well, 1 for a problem, 2 for wrong usage."""
    let_idle_threads_sleep()
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(words[0] if words else None).parse_args(words)
    arguments.is_own_process = argv is None  # nobody goes on working in a process that the shell started for a command
    try:
        return importlib.import_module(COMMANDS[arguments.command].module).run(arguments)
    except ValueError as error:
        return report_error(str(error), error)
    except ImportError as error:
        return report_error(f"{error}: run `llamafactory-embed doctor`.", error)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        sentence = (
            f"{error.filename or 'A file'} could not be read or written ({error.strerror}): make room, get access or "
            "name another folder; what was whole before still is."
        )
        return report_error(sentence, error)
    except KeyboardInterrupt:
        return 130


def report_error(sentence: str, error: Exception) -> int:
    """Say in a sentence what went wrong; the exit code."""
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    print(f"llamafactory-embed: {sentence}", file=sys.stderr)
    return 1


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of one of them."""
    parser = argparse.ArgumentParser(
        prog="llamafactory-embed", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=describe_versions())
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, (module, help) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def describe_versions() -> str:
    """This package's version and its host's."""
    try:
        host = f"LLaMA-Factory {version('llamafactory')}"
    except PackageNotFoundError:
        host = "LLaMA-Factory is not installed"
    return f"llamafactory-embed {__version__} ({host})"
