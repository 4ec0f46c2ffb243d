"""Run a recipe in this process: `python -m tests.sampling.rank_run recipe.json`, also once a rank under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path


if __name__ == "__main__":
    from llamafactory.train.tuner import run_exp

    run_exp(json.loads(Path(sys.argv[1]).read_text("utf-8")))
