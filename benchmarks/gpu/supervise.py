"""Steps one after the other, each in a process of its own that is stopped when its time is over.

The processes are forked from one that has imported torch and transformers but never used the device, so that a step
starts in the time that it takes to make a CUDA context, and what a step breaks there ends with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import describe_machine
from .profile import profiled
from .record import Record, describe_record, end_record, read_record
from .steps import Bench, Step, run_step


PRELOADED = ["torch", "transformers", "peft", "attention_patch", "benchmarks.gpu.shapes"]
LEAST_SECONDS = 5.0
"""A step that would have less time than this is not begun."""


@dataclass(frozen=True)
class Plan:
    """What all steps have in common."""

    output: Path
    device: str
    small: bool
    minutes: float
    again: bool
    profile: bool = False

    def path(self, step: Step) -> Path:
        """The file of a step."""
        return self.output / f"{step.name}.json"


def run_all(steps: list[Step], plan: Plan) -> bool:
    """Run the steps that have not passed; whether none of them failed."""
    context = _context_for(plan.device)
    deadline = time.monotonic() + 60 * plan.minutes
    for step in steps:
        before = read_record(plan.path(step))
        if before is not None and before["status"] == "passed" and not plan.again:
            print(f"{step.name}: passed on {before['date']} (--again runs it once more)", flush=True)
            continue
        _run_one(step, plan, deadline - time.monotonic(), context)
        found = read_record(plan.path(step))
        assert found is not None
        print("\n".join(describe_record(found)), flush=True)
    records = [read_record(plan.path(step)) for step in steps]
    return all(record is not None and record["status"] != "failed" for record in records)


Context = multiprocessing.context.ForkServerContext | multiprocessing.context.SpawnContext


def _context_for(device: str) -> Context:
    """Processes that have imported everything before any step's clock runs. Where an import has touched the device, a
    fork of it cannot use the device any more: then every step imports for itself."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asks whether there is a device without touching it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    probe = context.Process(target=use_device, args=(device,))
    probe.start()
    probe.join()
    if probe.exitcode == 0:
        return context
    print("steps start slowly: an import uses the device, so no process can be forked", flush=True)
    return multiprocessing.get_context("spawn")


def use_device(device: str) -> None:
    """The least that shows that a process can use the device."""
    import torch

    torch.zeros(1, device=device)


def _run_one(step: Step, plan: Plan, left: float, context: Context) -> None:
    """A step in its process, until it ends or its time does; afterwards its file says how it ended."""
    path = plan.path(step)
    path.unlink(missing_ok=True)
    limit = left if plan.small else min(float(step.seconds), left)  # a rehearsal may have any machine
    if limit < LEAST_SECONDS:
        end_record(path, step.name, step.title, "not run", f"no time left of {plan.minutes:g} minutes")
        return
    child = context.Process(target=run_in_child, args=(step, plan))
    child.start()
    child.join(limit)
    if child.is_alive():
        _kill(child)
        end_record(path, step.name, step.title, "failed", f"stopped after {limit:.0f} seconds")
    elif child.exitcode != 0:
        end_record(path, step.name, step.title, "failed", f"its process ended with code {child.exitcode}")


def _kill(child: multiprocessing.process.BaseProcess) -> None:
    """End a step and what it has started."""
    assert child.pid is not None
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it had no time to become their leader
        child.kill()
    child.join()


def run_in_child(step: Step, plan: Plan) -> None:
    """The whole life of a step's process, which leads those that it starts."""
    os.setsid()
    start = time.monotonic()
    record = Record(plan.path(step), step.name, step.title, describe_machine(plan.device))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan.device, plan.small, record, Path(folder))
        if plan.profile:
            with profiled(plan.path(step).with_suffix(".profile.txt"), plan.device):
                run_step(step, bench)
        else:
            run_step(step, bench)
    record.finish(time.monotonic() - start)
