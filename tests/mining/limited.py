"""Searches by processes that the system refuses more memory than they may use.

`python -m tests.mining.limited FOLDER` reads `FOLDER/cases.json` (name → function and arguments) and writes
`FOLDER/<name>.json`, the code with which the case's process ended and what it said. The processes are forks of one
that has imported all they need and has allocated nothing yet: imports take far longer than the searches.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Literal

import numpy as np

from llamafactory_embed.mining.search import HIT, IndexSettings, search_shard, shard_bounds
from llamafactory_embed.mining.vectors import ChunkedVectors
from tests.mining.helpers import on_disk


def search_in_shards(file: str, kind: Literal["flat", "ivf", "hnsw"], memory: int, allowed: float) -> int:
    """With `allowed` times the memory that the flag says, search as many shards as it takes, and say how many."""
    passages = ChunkedVectors([Path(file)], 10**9)
    queries = on_disk(passages.read(0, 200), Path(file).parent, f"queries-{os.getpid()}")
    settings = IndexSettings(kind, memory_mb=memory, hnsw_links=8, ivf_lists=16)
    search_shard(queries, passages, 0, 1000, 20, settings)  # libraries allocate what they keep
    allow(int(allowed * memory * 2**20))
    bounds = shard_bounds(len(passages), passages.dimension, settings)
    for start, stop in bounds:
        search_shard(queries, passages, start, stop, 20, settings)
    return len(bounds)


def search_for_many(file: str, memory: int, hits_file: str | None) -> int:
    """What many queries find, in a file or in memory."""
    queries = ChunkedVectors([Path(file)], 10**9)
    passages = on_disk(queries.read(0, 300), Path(file).parent, f"passages-{os.getpid()}")
    settings = IndexSettings("flat", memory_mb=memory)
    search_shard(passages, passages, 0, 300, 100, settings)
    allow(memory * 2**20)
    shape = (len(queries), 100)
    hits = np.lib.format.open_memmap(hits_file, "w+", HIT, shape) if hits_file else None
    search_shard(queries, passages, 0, 300, 100, settings, hits)
    return len(queries)


def allow(size: int) -> None:
    """From here on, this process may allocate so many bytes beyond what it has."""
    with open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + size,) * 2)


def run_case(log: Path, function: str, **arguments: object) -> int:
    """Call a function of this module in a fork, and return the code with which that ends."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        print(globals()[function](**arguments))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(folder: Path) -> None:
    for name, case in json.loads((folder / "cases.json").read_text("utf-8")).items():
        log = folder / f"{name}.log"
        code = run_case(log, **case)
        (folder / f"{name}.json").write_text(json.dumps([code, log.read_text("utf-8")]), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
