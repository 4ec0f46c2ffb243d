"""Start a module of the tests in two ranks of torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
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
