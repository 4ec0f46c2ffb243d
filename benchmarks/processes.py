"""Every measurement runs in a process of its own, and those that are compared take turns."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]

Run = dict[str, Any]  # what one process measured, with its case, variant and repeat


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: a function `module:name` from a request to what it measured."""

    function: str
    request: Mapping[str, Any]
    python: str = sys.executable
    """The interpreter; that of another environment for what cannot live in this one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment beside those of this process."""


def take_turns(cases: Mapping[str, Mapping[str, Variant]], repeats: int) -> list[Run]:
    """Run all variants of all cases `repeats` times. The variants of a case stand side by side in time, every other
    time in reverse order, so that a machine that slows down does so for all of them."""
    runs: list[Run] = []
    for repeat in range(repeats):
        for case, variants in cases.items():
            names = list(variants) if repeat % 2 == 0 else list(variants)[::-1]
            for name in names:
                measured = run_fresh(variants[name])
                runs.append({"case": case, "variant": name, "repeat": repeat, **measured})
                print(f"  {repeat + 1}/{repeats}  {case}: {name}  {_brief(measured)}", flush=True)
    return runs


def run_fresh(variant: Variant) -> dict[str, Any]:
    """Call a variant's function in a new interpreter."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "WANDB_DISABLED": "true"}
    environment |= variant.environment
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(json.dumps({"function": variant.function, "request": dict(variant.request)}), "utf-8")
        command = [variant.python, "-m", "benchmarks.processes", str(request), str(answer)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last_lines = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
            raise RuntimeError(f"{variant.function} failed in its process:\n{last_lines}")
        return json.loads(answer.read_text("utf-8"))


def _brief(measured: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in measured.items() if isinstance(value, (int, float))}
    return ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())


def main(arguments: Sequence[str]) -> None:
    """The new interpreter: read the request, call the function, write the answer."""
    request_path, answer_path = map(Path, arguments)
    content = json.loads(request_path.read_text("utf-8"))
    module, _, name = content["function"].partition(":")
    answer = getattr(importlib.import_module(module), name)(content["request"])
    answer_path.write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
