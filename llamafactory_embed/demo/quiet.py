"""A program that says little: what libraries print goes to a file, and the program itself to the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Append all that is written to stdout and stderr in the block, by whatever part of the process, to a file, and
    the traceback of what breaks it off; gives a stream that still leads to where stdout led.

    The file stays open: handlers that loggers make in the block keep writing to it afterwards.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("a", encoding="utf-8", buffering=1)
    for each in (sys.stdout, sys.stderr):
        each.flush()
    terminal = _lasting(sys.stdout)
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in kept:  # C libraries, and handlers that hold the streams of before
            os.dup2(stream.fileno(), descriptor)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            try:
                yield terminal
            except BaseException:
                traceback.print_exc()
                raise
    finally:
        stream.flush()
        terminal.flush()
        for descriptor, saved in kept.items():
            os.dup2(saved, descriptor)
            os.close(saved)


def _lasting(stdout: TextIO) -> TextIO:
    """A stream that leads where stdout leads now. One that is no file, as in a notebook, is not led away with the file
    descriptors."""
    try:
        descriptor = stdout.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return stdout
    return os.fdopen(os.dup(descriptor), "w", encoding=stdout.encoding, errors="replace", buffering=1)
