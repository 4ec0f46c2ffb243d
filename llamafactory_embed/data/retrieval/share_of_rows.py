"""The process that reads a share of a data set's rows (`shares.py` starts it): a JSON object a line from and to who
started it, first how many rows there are, then the table of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from typing import Any

from ..file_parts import FilePart, count_rows, read_part
from ..problems import BadRows
from .entries import Entry
from .formats import NliPair
from .reader import parse_records
from .row_table import RowWriter


def read_share() -> None:
    """Read what is asked for from the standard input; what comes of it goes to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        request = json.loads(sys.stdin.readline())
        parts = [FilePart(**part) for part in request["parts"]]
        for step in (_count, _write):
            try:
                answer = step(request, parts)
            except OSError as error:
                answer = {"errno": error.errno, "problem": error.strerror or str(error)}
            except ValueError as error:  # a reader refuses a file
                answer = {"refused": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


def _count(request: dict[str, Any], parts: list[FilePart]) -> dict[str, Any]:
    return {"counts": [count_rows(part) for part in parts]}


def _write(request: dict[str, Any], parts: list[FilePart]) -> dict[str, Any]:
    import pyarrow as pa

    before = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_caller, daemon=True).start()
    entry = Entry(**request["entry"] | {"instructions": tuple(request["entry"]["instructions"])})
    bad_rows = BadRows(request["skip"])
    records = itertools.chain.from_iterable(map(read_part, parts, before["lines"]))
    with pa.OSFile(request["table"], "wb") as sink:
        writer = RowWriter(sink, files=request["files"])
        for _, row in parse_records(records, entry, bad_rows, first=before["records"]):
            if isinstance(row, NliPair):
                raise ValueError("Labelled pairs of inference are joined over the whole data set.")
            writer.add(row)
        writer.close()
    return {"bad_rows": bad_rows.count, "told": bad_rows.told}


def _end_with_caller() -> None:
    """A caller that was killed says nothing more, and then nobody waits for this share."""
    sys.stdin.read()
    os._exit(1)
