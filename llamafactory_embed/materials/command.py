"""`llamafactory-embed init`: the recipes and the bundled data in a folder of your own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..hparams.command_line import add_options
from ..hparams.option import option
from .update import NEW_VERSION, Written, write_materials


@dataclass(frozen=True)
class InitOptions:
    """Where the recipes and the data go."""

    folder: Path = option(
        Path("."), "Folder to write `examples/` and `data/` into, or to bring up to date.", positional=True
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_options(parser, InitOptions)


def run(arguments: argparse.Namespace) -> int:
    """Write or update, and say what happened to which file."""
    written = write_materials(arguments.folder)
    print("\n".join(describe_written(arguments.folder, written)))
    return 0


def describe_written(folder: Path, written: Written) -> list[str]:
    """A line of counts, a line for each file that its owner should look at, and what to do next."""
    counts = {
        "written": len(written.created),
        "updated": len(written.updated),
        "up to date": len(written.unchanged),
        "changed by you and left alone": len(written.kept) + len(written.conflicting),
    }
    lines = [f"{folder}: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)]
    lines += [f"  {name} is yours; the new version is {name}{NEW_VERSION}" for name in written.conflicting]
    lines += [f"  {name} is yours, as before" for name in written.kept]
    lines += [f"  {name} is no longer shipped; it was left as it is" for name in written.no_longer_shipped]
    if written.created:
        enter = "" if folder == Path(".") else f"cd {folder} && "
        lines += ["", "Next:", f"  {enter}llamafactory-embed demo", "  llamafactory-embed recipe check examples/…"]
    return lines
