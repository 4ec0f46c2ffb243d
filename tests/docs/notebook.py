"""Run a notebook's cells without Jupyter: Python, and the lines `!command` in a process of their own or by a function.

python -m tests.docs.notebook NOTEBOOK      runs it in the working directory, and writes what it printed into it
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


_COMMAND = re.compile(r"^!(.+)$", re.MULTILINE)


def code_cells(notebook: Path) -> Iterator[dict[str, Any]]:
    """The cells that hold code."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield cell


def run_cell(source: str, names: dict[str, Any], run_command: Callable[[str], str]) -> str:
    """Run a cell with the names of the cells before it; what it prints. `{name}` in a command is the name's value."""
    names["run_command"] = lambda command: print(run_command(command.format_map(names)), end="")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(_COMMAND.sub(lambda match: f"run_command({match[1]!r})", source), names)
    return printed.getvalue()


def in_a_shell(command: str) -> str:
    """What Jupyter does with a command."""
    done = subprocess.run(command, shell=True, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout


def write_outputs(notebook: Path) -> None:
    """Execute the notebook, and write it with its outputs."""
    content = json.loads(notebook.read_text("utf-8"))
    names: dict[str, Any] = {}
    for count, cell in enumerate((each for each in content["cells"] if each["cell_type"] == "code"), start=1):
        printed = run_cell("".join(cell["source"]), names, in_a_shell)
        output = {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}
        cell |= {"execution_count": count, "outputs": [output] if printed else []}
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_outputs(Path(sys.argv[1]))
