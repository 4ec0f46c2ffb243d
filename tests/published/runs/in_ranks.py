"""Perform recipes in each rank of torchrun.

`torchrun --nproc-per-node 2 -m tests.published.runs.in_ranks FOLDER` reads `FOLDER/runs.json` (name → recipe),
performs one after the other, and leaves each rank's `Recording` in `FOLDER/<name>-<rank>.pt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from llamafactory.train import tuner

from .recording import record_run


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    tuner.dist.destroy_process_group = lambda: None  # the next run needs it
    for name, recipe in json.loads((folder / "runs.json").read_text(encoding="utf-8")).items():
        recording = record_run(recipe)
        recording.micro_batches = [(rows, {}) for rows, _ in recording.micro_batches]  # rows are enough, and plain
        torch.save(recording, folder / f"{name}-{dist.get_rank()}.pt")
        dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
