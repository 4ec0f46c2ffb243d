"""A run whose processes are killed: what the user reads, and how soon everything has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.patience import PATIENCE


REPOSITORY = Path(__file__).parents[2]
LONGEST_END = 60.0  # seconds that the rest of a run may take to end; torchrun gives its ranks 30


@dataclass(frozen=True)
class Ended:
    """A run whose process was killed."""

    code: int
    seconds: float
    said: str


def start(recipe: dict[str, Any], folder: Path, ranks: int = 1) -> subprocess.Popen[bytes]:
    """The recipe as `llamafactory-cli train` runs it, in so many ranks; what it says goes to `folder/said.txt`."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where the host finds torchrun
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": scripts}
    if ranks > 1:
        environment |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(ranks)}
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(path)]
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=said, stderr=said)


def kill_when(process: subprocess.Popen[bytes], checkpoint: Path, name: str, value: str, folder: Path) -> Ended:
    """kill -9 the process below `process` whose environment has this value, when a checkpoint is there; wait for the
    end of all."""
    deadline = time.monotonic() + PATIENCE
    while not checkpoint.is_dir():
        is_running = process.poll() is None and time.monotonic() < deadline
        assert is_running, (folder / "said.txt").read_text("utf-8")
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    killed = next(each for each in below if each.environ().get(name) == value)
    killed.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code = process.wait(timeout=PATIENCE)
    psutil.wait_procs(below, timeout=PATIENCE)
    said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
    return Ended(code, time.monotonic() - begun, said)
