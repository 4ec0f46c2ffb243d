"""Rows of a large data set read by several processes, each a share of the files' lines.

The rows, their lines and the bad rows that are told are those that one process would find. They are processes of their
own, which begin anew: a copy of a process that computes (`fork`) may hang, and one that is made by `multiprocessing`
would run the user's script again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..file_parts import FilePart, cut_files
from ..problems import BadRows
from .beir import is_collection
from .entries import Entry


# A process is started for no fewer bytes: it takes some seconds until it reads.
SMALLEST_SHARE = 64 * 2**20
START = (
    "import sys; sys.path[:] = sys.argv[1:]\n"
    "from llamafactory_embed.data.retrieval.share_of_rows import read_share; read_share()"
)


class CannotBeSharedError(Exception):
    """What a share holds must be read by one process, which also tells what is wrong with a file."""


def write_in_shares(
    entry: Entry, processes: int, folder: Path, bad_rows: BadRows
) -> tuple[list[str], list[str]] | None:
    """Read a data set into tables in a folder: their names and those of the files read. None where one process is to
    read it: because it is small, or cannot be cut."""
    shares = _cut(entry, processes)
    if len(shares) < 2:
        return None
    files = list(dict.fromkeys(part.path for parts in shares for part in parts))
    tables = [f"rows-{number}.arrow" for number in range(len(shares))]
    try:
        answers = _read(entry, shares, files, [str(folder / table) for table in tables], bad_rows.skip)
    except CannotBeSharedError:
        for table in tables:
            (folder / table).unlink(missing_ok=True)
        return None
    for answer in answers:
        bad_rows.include(answer["bad_rows"], answer["told"])
    return tables, files


def _cut(entry: Entry, processes: int) -> list[list[FilePart]]:
    """Texts that rows name by id would be in the memory of every process, and vectors in a file belong to records that
    must be as many."""
    if entry.on_hub or entry.corpus or entry.queries or entry.teacher_vectors or is_collection(entry.location):
        return []
    whole = cut_files(entry.location, 1)
    size = sum(part.end - part.start for parts in whole for part in parts)
    return cut_files(entry.location, min(processes, size // SMALLEST_SHARE)) if size >= 2 * SMALLEST_SHARE else []


def _read(
    entry: Entry, shares: Sequence[Sequence[FilePart]], files: list[str], tables: list[str], skip: bool
) -> list[dict[str, Any]]:
    with contextlib.ExitStack() as ending:
        readers = [ending.enter_context(_Reader()) for _ in shares]
        for reader, parts, table in zip(readers, shares, tables, strict=True):
            reader.ask(
                entry=dataclasses.asdict(entry),
                parts=[dataclasses.asdict(part) for part in parts],
                files=files,
                table=table,
                skip=skip,
            )
        lines: Counter[str] = Counter()
        records = 0
        for reader, parts in zip(readers, shares, strict=True):
            counts = reader.answer()["counts"]
            reader.ask(records=records, lines=[lines[part.path] for part in parts])
            for part, (lines_of_part, records_of_part) in zip(parts, counts, strict=True):
                lines[part.path] += lines_of_part
                records += records_of_part
        return [reader.answer() for reader in readers]


class _Reader:
    """A process that reads a share, and ends when it is left."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", START, *sys.path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # it may have ended before it has read everything
            self._requests.close()
        self._answers.close()
        self._process.wait()

    def ask(self, **request: Any) -> None:
        """Send a request."""
        with contextlib.suppress(OSError):  # `answer` tells of a process that has ended
            print(json.dumps(request), file=self._requests, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for what comes of it."""
        line = self._answers.readline()
        if not line:
            raise ValueError(
                f"A process that prepares rows ended with code {self._process.wait()}: its own last words say why; if "
                "it has none, it was killed, perhaps because memory ran out. Lower `preprocessing_num_workers`."
            )
        answer: dict[str, Any] = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["problem"])
        if "refused" in answer:
            raise CannotBeSharedError(answer["refused"])
        return answer
