"""A rank of torchrun is killed: what the user reads, how soon everything has ended, and what comes of going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.contrastive_runs import recipe, write_data
from tests.patience import PATIENCE
from tests.tiny_models import save_tiny_model

from .jobs import digest_of


REPOSITORY = Path(__file__).parents[2]
LONGEST_END = 60.0  # seconds that the rest of a run may take to end; torchrun gives its ranks 30
STEPS, KILLED_AFTER = 12, 3
TWO_RANKS = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
# The host's elastic launch. With the store that torchrun shares, ranks that start again look for the old ones.
STARTS_AGAIN = TWO_RANKS | {
    "RDZV_ID": "chaos", "MIN_NNODES": "1", "MAX_NNODES": "1", "MAX_RESTARTS": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}  # fmt: skip
SENTENCES = (
    "Another process of this run ended, and took this one along in step",
    "is whole, and the same recipe goes on from there.",
    "A process of this run has ended with an error or was killed (torchrun ended with 1)",
)


def kill_a_rank(root: Path, log: Path) -> bool:
    """Print what was seen; whether it is as it should be."""
    model, data = save_tiny_model(root / "model"), write_data(root / "data")
    runs = {}
    for name in ("whole", "killed", "restarted"):
        runs[name] = recipe(
            model, data, root / name, max_steps=STEPS, save_strategy="steps", save_steps=1, optim="adamw_torch",
            per_device_train_batch_size=2,
        )  # fmt: skip
    whole = start(runs["whole"], root, log).wait(PATIENCE)
    code, seconds, said = kill_rank_1(runs["killed"], root, log)
    again = start(runs["killed"], root, log).wait(PATIENCE)
    same = digest_of(root / "whole" / "model.safetensors") == digest_of(root / "killed" / "model.safetensors")
    missing = [each for each in SENTENCES if each not in said]
    print(
        f"kill -9 of a rank: the run ended with {code} after {seconds:.0f} s; going on: {again}; weights as those of"
    )
    print(f"a run that nobody killed ({whole}): {same}; sentences that are missing: {missing or 'none'}", flush=True)
    restarted, _, _ = kill_rank_1(runs["restarted"], root, log, STARTS_AGAIN)
    same_again = digest_of(root / "whole" / "model.safetensors") == digest_of(root / "restarted" / "model.safetensors")
    print(f"the same, started again by torchrun: {restarted}, {same_again}", flush=True)
    is_sound = (whole, code, again, same, missing, restarted, same_again) == (0, 1, 0, True, [], 0, True)
    return is_sound and seconds < LONGEST_END


def start(
    run: dict[str, Any], folder: Path, log: Path, environment: Mapping[str, str] = TWO_RANKS
) -> subprocess.Popen[bytes]:
    """The recipe as `llamafactory-cli train` runs it, on two ranks of torchrun if nothing else is said."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where the host finds torchrun
    own = {"CUDA_VISIBLE_DEVICES": "", "PATH": scripts, **environment}
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(path)]
    with log.open("ab") as said:
        return subprocess.Popen(command, env={**os.environ, **own}, cwd=REPOSITORY, stdout=said, stderr=said)


def kill_rank_1(
    run: dict[str, Any], folder: Path, log: Path, environment: Mapping[str, str] = TWO_RANKS
) -> tuple[int, float, str]:
    """Kill it when a checkpoint is there, and wait for the end of all: the exit code, the seconds that took, and what
    was said."""
    said_before = log.stat().st_size
    process = start(run, folder, log, environment)
    deadline = time.monotonic() + PATIENCE
    while not Path(run["output_dir"], f"checkpoint-{KILLED_AFTER}").is_dir():
        is_running = process.poll() is None and time.monotonic() < deadline
        assert is_running, log.read_text("utf-8", errors="replace")[-3000:]
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    next(each for each in below if each.environ().get("RANK") == "1").send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code = process.wait(PATIENCE)
    psutil.wait_procs(below, timeout=PATIENCE)
    return code, time.monotonic() - begun, log.read_bytes()[said_before:].decode("utf-8", errors="replace")
