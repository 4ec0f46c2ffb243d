"""Ray workers are killed, while they mine and while they train: what the user reads, how soon everything has ended,
and what comes of going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.contrastive_runs import recipe, write_data
from tests.patience import PATIENCE
from tests.tiny_models import save_tiny_model

from .jobs import Given, digest_of
from .kills import KILLED_AFTER, LONGEST_END, REPOSITORY, STEPS, start


# On a busy machine, Ray's nice workers would starve, and its monitor would kill them for the memory of others.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
MINER, TRAINER = "ray::MapWorker", "ray::Worker"  # how Ray names its processes
MINE = """
import sys
import ray
from llamafactory_embed.cli import main
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
sys.exit(main(sys.argv[1:]))
"""
MINING_SENTENCE = "A Ray worker ended while it did jobs of `embed`"
TRAINING_SENTENCES = ("A Ray worker of this run ended", "Another process of this run ended")


def kill_ray_workers(root: Path, log: Path) -> bool:
    """Print what was seen; whether it is as it should be."""
    os.environ |= RAY
    return all([kill_miners(root / "mining", log), kill_a_trainer(root / "training", log)])


# ------------------------------------------------ mining ------------------------------------------------------


def kill_miners(root: Path, log: Path) -> bool:
    """One worker once; then every worker, as often as there is one."""
    given = Given(root)
    words = ["mine", "--model", str(given.embedder), "--data", str(given.rows / "nouns.jsonl"), "--chunk-size", "2"]
    words += ["--ranks", "2:20", "--num-negatives", "4", "--device", "cpu"]

    def mine(name: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", MINE, *words, "--output", str(root / f"{name}.jsonl"), *more]
        with log.open("ab") as said:
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=said)

    def parts(name: str) -> list[Path]:
        return sorted((root / f"{name}.jsonl.work" / "embed").glob("*.npy"))

    whole = subprocess.run([sys.executable, "-c", MINE, *words, "--output", str(root / "whole.jsonl")], check=True)
    expected = (root / "whole.jsonl").read_bytes()

    once = mine("once", "--ray-workers", "2")
    wait_until(lambda: bool(parts("once")), once, log)
    next(workers(once.pid, MINER)).send_signal(signal.SIGKILL)
    code = once.wait(PATIENCE)
    same = code == 0 and (root / "once.jsonl").read_bytes() == expected
    print(f"kill -9 of one of two Ray workers that mine: ended with {code}; as one process: {same}", flush=True)

    begun, before = mine("always", "--ray-workers", "2"), log.stat().st_size
    wait_until(lambda: len(parts("always")) > 1, begun, log)
    started = time.monotonic()
    while begun.poll() is None and time.monotonic() - started < PATIENCE:
        for worker in workers(begun.pid, MINER):
            worker.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    seconds, done = time.monotonic() - started, {path: path.stat().st_mtime_ns for path in parts("always")}
    said = log.read_bytes()[before:].decode("utf-8", errors="replace")
    again = mine("always", "--ray-workers", "2", "--keep-work").wait(PATIENCE)
    kept = all(path.stat().st_mtime_ns == time for path, time in done.items())
    result = (root / "always.jsonl").read_bytes() == expected
    print(f"kill -9 of every Ray worker that mines: ended with {begun.returncode} after {seconds:.0f} s, the sentence "
          f"said: {MINING_SENTENCE in said}; going on: {again}; {len(done)} parts that were done stay: {kept}; "
          f"as one process: {result}", flush=True)  # fmt: skip
    is_told = begun.returncode == 1 and MINING_SENTENCE in said and seconds < LONGEST_END
    return same and is_told and again == whole.returncode and kept and result


# ------------------------------------------------ training ----------------------------------------------------


def kill_a_trainer(root: Path, log: Path) -> bool:
    """One of two workers, in the middle of a run."""
    model, data = save_tiny_model(root / "model"), write_data(root / "data")
    environment = {"USE_RAY": "1", "FORCE_TORCHRUN": "0"}

    def train(name: str) -> tuple[dict[str, Any], subprocess.Popen[bytes]]:
        run = recipe(
            model, data, root / name, max_steps=STEPS, save_strategy="steps", save_steps=1, optim="adamw_torch",
            per_device_train_batch_size=2, ray_num_workers=2, ray_init_kwargs={"num_cpus": 20},
        )  # fmt: skip
        return run, start(run, root, log, environment)

    whole = train("whole")[1].wait(PATIENCE)
    before = log.stat().st_size
    run, killed = train("killed")
    wait_until(Path(run["output_dir"], f"checkpoint-{KILLED_AFTER}").is_dir, killed, log)
    below = psutil.Process(killed.pid).children(recursive=True)
    next(workers(killed.pid, TRAINER)).send_signal(signal.SIGKILL)
    begun = time.monotonic()
    code = killed.wait(PATIENCE)
    psutil.wait_procs(below, timeout=PATIENCE)
    seconds = time.monotonic() - begun
    said = log.read_bytes()[before:].decode("utf-8", errors="replace")
    is_told = any(sentence in said for sentence in TRAINING_SENTENCES)
    again = train("killed")[1].wait(PATIENCE)
    same = digest_of(root / "whole" / "model.safetensors") == digest_of(root / "killed" / "model.safetensors")
    print(f"kill -9 of one of two Ray workers that train: the run ended with {code} after {seconds:.0f} s, a sentence "
          f"said: {is_told}; going on: {again}; weights as those of a run that nobody killed ({whole}): {same}",
          flush=True)  # fmt: skip
    return (whole, code, again, same, is_told) == (0, 1, 0, True, True) and seconds < LONGEST_END


# ------------------------------------------------ processes ---------------------------------------------------


def workers(driver: int, name: str) -> Iterator[psutil.Process]:
    """The processes of Ray below a driver that do its work."""
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(name):
                yield process
        except (psutil.NoSuchProcess, IndexError):  # it has just ended
            continue


def wait_until(is_there: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """While the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not is_there():
        is_running = process.poll() is None and time.monotonic() < deadline
        assert is_running, log.read_text("utf-8", errors="replace")[-3000:]
        time.sleep(0.05)
