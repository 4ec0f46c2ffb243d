"""Start a module of the tests in two ranks."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.patience import PATIENCE


REPOSITORY = Path(__file__).parents[1]


def torchrun(module: str, *arguments: object, **variables: str) -> None:
    """Run `python -m module arguments` once a rank, with these variables of the environment; fail if a rank fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def forked_ranks(module: str, *arguments: object, **variables: str) -> None:
    """As `torchrun` does, but in forks of a process that has imported the host, which takes most of a short run."""
    server = rank_server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        request = {"module": module, "arguments": list(map(str, arguments)), "variables": variables, "log": log.name}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        is_answered, _, _ = select.select([server.stdout], [], [], PATIENCE)
        answer = server.stdout.readline() if is_answered else ""
        if not answer:  # it hangs or has died
            os.killpg(server.pid, signal.SIGKILL)
            rank_server.cache_clear()
        assert answer.strip() == "0", f"a rank ended with {answer.strip() or 'nothing'}:\n{log.read()[-6000:]}"


@functools.cache
def rank_server() -> subprocess.Popen[str]:
    """The process that ranks are forked from; it ends with this one, which closes its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rank_server"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
