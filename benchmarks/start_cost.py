"""What the plugin costs every start of Python: an interpreter that does nothing, with and without it."""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import ROOT, Run
from .results_file import Result, spread, table_of


TITLE = "Start of the interpreter"
CASE = "python -c pass"
PTH = "llamafactory_embed.pth"


@dataclass(frozen=True)
class Settings:
    runs_per_repeat: int = 10


@dataclass(frozen=True)
class Interpreter:
    """A Python to start, and the environment variables that it starts with."""

    python: Path
    variables: dict[str, str]

    def start(self, code: str = "pass") -> str:
        """Run code to its end and return what it printed."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment.pop("LLAMAFACTORY_EMBED_DISABLE", None)
        done = subprocess.run(
            [self.python, "-c", code], env=environment | self.variables, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


def make_interpreters(folder: Path) -> dict[str, Interpreter]:
    """Bare environments that see the project as an editable installation does. One of them lacks the `.pth` file."""
    pythons = {}
    for name in ("with", "without"):
        venv.create(folder / name, symlinks=True, with_pip=False)
        pythons[name] = folder / name / "bin" / "python"
        (packages,) = (folder / name / "lib").glob("python*/site-packages")
        (packages / "_editable.pth").write_text(f"{ROOT}\n", "utf-8")
        if name == "with":
            (packages / PTH).write_text((ROOT / PTH).read_text("utf-8"), "utf-8")
    return {
        "plugin active": Interpreter(pythons["with"], {}),
        "LLAMAFACTORY_EMBED_DISABLE=1": Interpreter(pythons["with"], {"LLAMAFACTORY_EMBED_DISABLE": "1"}),
        "no .pth file": Interpreter(pythons["without"], {}),
    }


def measure(settings: Settings, repeats: int, folder: Path) -> Result:
    """All three start in turns; the cost is the median difference of neighbours."""
    interpreters = make_interpreters(folder)
    runs: list[Run] = []
    for interpreter in interpreters.values():
        interpreter.start()  # writes the byte code
    for repeat in range(repeats * settings.runs_per_repeat):
        names = list(interpreters) if repeat % 2 == 0 else list(interpreters)[::-1]
        for name in names:
            start = time.perf_counter()
            interpreters[name].start()
            milliseconds = 1000 * (time.perf_counter() - start)
            runs.append({"case": CASE, "variant": name, "repeat": repeat, "milliseconds": milliseconds})
    active, disabled, without = ([run["milliseconds"] for run in runs if run["variant"] == n] for n in interpreters)
    return Result(
        settings=dataclasses.asdict(settings) | {"starts": len(active)},
        runs=runs,
        figures=[
            _cost("active, above no .pth file", active, without, at_most=2.0),
            _cost("switched off, above no .pth file", disabled, without, at_most=2.0),
        ],
        table=table_of(runs, {"milliseconds": lambda median: f"{median('milliseconds'):.1f}"}),
    )


def _cost(what: str, these: list[float], those: list[float], **target: float) -> Any:
    """The median difference, and its quartiles: single starts are as noisy as the machine."""
    differences = [this - that for this, that in zip(these, those, strict=True)]
    figure = spread(what, differences, unit="ms", **target)
    if len(differences) < 4:
        return figure
    low, _, high = statistics.quantiles(differences, n=4)
    return dataclasses.replace(figure, lowest=low, highest=high)
