"""Two ranks at the end of a training with `eval_tasks`: the first one judges, and the other one waits for it."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from llamafactory_embed.evaluation import run
from llamafactory_embed.train.embed import eval_tasks
from tests.patience import PATIENCE


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    rank = dist.get_rank()
    arrived, judged = folder / "arrived", folder / "judged"

    def judge_slowly(*args: Any) -> dict[str, float]:
        while not arrived.exists():
            time.sleep(0.05)
        time.sleep(2)  # a rank that does not wait goes on meanwhile
        judged.touch()
        return {"task_score": 0.5}

    run.evaluate_encoder = judge_slowly
    eval_tasks.Encoder = lambda *args, **kwargs: None  # type: ignore[assignment,misc]
    new_group, timeouts = dist.new_group, []

    def record_timeout(*args: Any, **kwargs: Any) -> Any:
        timeouts.append(kwargs["timeout"])
        return new_group(*args, **kwargs)

    dist.new_group = record_timeout
    trainer: Any = SimpleNamespace(
        is_world_process_zero=lambda: rank == 0, is_sharded=False, embedding_model=None, processing_class=None
    )
    if rank == 1:
        arrived.touch()
    metrics = eval_tasks.judge_finished_model(trainer, ["a task"], SimpleNamespace(output_dir=str(folder)))  # type: ignore[arg-type]
    assert judged.exists(), "this rank goes on while the other one judges"
    assert metrics == ({"task_score": 0.5} if rank == 0 else {})
    assert min(timeouts) > timedelta(days=7)  # the time-out of the other groups, minutes, is for training steps
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
