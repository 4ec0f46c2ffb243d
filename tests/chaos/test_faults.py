"""A sample of `make chaos`: whenever a process is killed, what was whole stays whole, and going on ends the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.patience import PATIENCE

from .writing_calls import IS_POSSIBLE, trace


pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="system calls are watched on Linux, x86-64")

REPOSITORY = Path(__file__).parents[2]


def test_nothing_is_lost() -> None:
    """In a process of its own, which forks: that of pytest has threads."""
    jobs = ("encoding", "tdro weights", "evaluation")
    command = [sys.executable, "-m", "tests.chaos", *jobs, "--resume-every", "9", "--fail-every", "5"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    assert [row[0] for row in rows] == list(jobs)
    for _, points, resumed, refused, lost, _ in rows:
        assert min(int(points) - 5, int(resumed), int(refused)) > 0
        assert lost == "0"


def test_a_process_with_threads_is_not_forked(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="could wait for them for ever"):
            trace(lambda: None, tmp_path, lambda call: None)
    finally:
        done.set()
        thread.join()
