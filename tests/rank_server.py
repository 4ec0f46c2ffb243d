"""A process that has imported what a training needs, and forks two ranks for whoever asks.

Every process that torchrun starts imports the host, which takes most of the time of a short run. This one does it
once, and has nothing that a fork may not have: no other thread, and no process group. A request is a line of JSON on
its standard input, `{"module": …, "arguments": […], "variables": {…}, "log": …}`: each rank runs `python -m module
arguments` with these variables of the environment beside those of torchrun, and writes what it has to say to the log.
The answer is a line of JSON, the code that the first rank to fail ended with, or 0.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import Any

from torch.distributed import TCPStore


RANKS = 2
HOST = "127.0.0.1"
PORT_SIZE = 5


def serve() -> None:
    """Answer requests until there are no more."""
    from llamafactory.train import tuner

    assert tuner.run_exp
    gc.freeze()  # a collection of garbage in a fork would touch, and so copy, all of it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        json.dump(run_ranks(json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


def run_ranks(request: dict[str, Any]) -> int:
    """Run a request in processes of its own; when one fails, the others are ended, as torchrun does."""
    assert threading.active_count() == 1, f"no process can be forked beside {threading.enumerate()}"
    port_reader, port_writer = os.pipe()
    running = {fork_rank(rank, port_reader, request) for rank in range(RANKS)}
    os.close(port_reader)
    # Where the ranks find each other, as in torchrun's agent. It has a thread, so it comes after the forks.
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    os.write(port_writer, f"{store.port:{PORT_SIZE}}".encode() * RANKS)
    os.close(port_writer)
    failed = 0
    while running:
        process, status = os.wait()
        running.discard(process)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in running:
                os.kill(other, signal.SIGKILL)
    return failed


def fork_rank(rank: int, port_reader: int, request: dict[str, Any]) -> int:
    """Start a rank, and return its process."""
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        become_rank(rank, port_reader, request)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)  # what lies below is the server


def become_rank(rank: int, port_reader: int, request: dict[str, Any]) -> None:
    """Do in this process what torchrun's would do."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, file in enumerate((nothing, log, log)):
        os.dup2(file, descriptor)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    port = int(os.read(port_reader, PORT_SIZE))
    store = {"MASTER_ADDR": HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in (ranks | store | request["variables"]).items()})
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
