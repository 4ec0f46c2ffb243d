"""OpenMP's threads sleep between two pieces of work in the host's processes, unless somebody has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE


SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'), sep='/', end=' ')\n"
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("first", "environment", "shown"),
    [
        ("import llamafactory", {}, "None/None PASSIVE/10000"),
        ("import llamafactory", {"OMP_WAIT_POLICY": "active"}, "active/None active/None"),
        ("import llamafactory", {"GOMP_SPINCOUNT": "7"}, "None/7 PASSIVE/7"),
        ("import llamafactory", {"LLAMAFACTORY_EMBED_DISABLE": "1"}, "None/None None/None"),
        ("import torch, llamafactory", {}, "None/None None/None"),  # it is too late
        ("import torch", {}, "None/None"),
    ],
)
def test_the_hosts_processes(first: str, environment: dict[str, str], shown: str, tmp_path: Path) -> None:
    """Packages of these names that say what they find when they are executed."""
    (tmp_path / "llamafactory.py").write_text(SHOW)
    (tmp_path / "torch.py").write_text("")
    known = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW + f"import llamafactory_embed.autoload, sys\n{first}"],
        env=known | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"} | environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == shown.split()
