"""`eval_tasks`: the finished embedder judged with mteb."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ...encoder.encoder import Encoder
from ...evaluation.options import TRAINING_RESULTS
from .trainer import EmbeddingTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


LONGEST_EVALUATION = timedelta(days=30)


def find_eval_tasks(names: Sequence[str] | None, dataset_dir: object) -> list[Any]:
    """The tasks behind the names, before anything is trained: a misspelt one must not be found out after it."""
    if not names:
        return []
    if importlib.util.find_spec("mteb") is None:
        raise ValueError("`eval_tasks` needs mteb: pip install 'llamafactory-embed[eval]'.")
    from ...evaluation.tasks import choose_tasks

    return choose_tasks(names, dataset_dir if isinstance(dataset_dir, str) else None, option="eval_tasks")


def judge_finished_model(
    trainer: EmbeddingTrainer, tasks: Sequence[Any], training_args: TrainingArguments
) -> dict[str, float]:
    """Main scores of the tasks, on the main process; what engines have cut into shards is read back from the
    checkpoint. The results are those of `llamafactory-embed eval`, in `mteb` below `output_dir`."""
    if not tasks:
        return {}
    if trainer.is_sharded and not training_args.do_train:
        raise ValueError(
            "`eval_tasks` of a model in shards needs its checkpoint: run `llamafactory-embed eval` on it."
        )
    with all_ranks_wait():
        return _judge_here(trainer, tasks, Path(training_args.output_dir)) if trainer.is_world_process_zero() else {}


@contextmanager
def all_ranks_wait() -> Iterator[None]:
    """Let no rank leave the block before the last one does. What they do together afterwards, such as collecting
    shards for a push to the hub, would wait for a rank that is judging for hours. NCCL gives up after half an hour;
    gloo waits as long as it is told to."""
    if not dist.is_initialized():
        yield
        return
    group = dist.new_group(backend="gloo", timeout=LONGEST_EVALUATION)
    yield  # a rank that fails ends the others: its connections close
    dist.barrier(group)
    dist.destroy_process_group(group)


def _judge_here(trainer: EmbeddingTrainer, tasks: Sequence[Any], output: Path) -> dict[str, float]:
    from ...evaluation.run import evaluate_encoder

    encoder = (
        Encoder(output, device=trainer.args.device)
        if trainer.is_sharded
        else Encoder(trainer.embedding_model, trainer.processing_class)
    )
    name = f"{output.resolve().parent.name}/{output.resolve().name}"
    return evaluate_encoder(encoder, tasks, name, output / TRAINING_RESULTS)
