"""`eval_tasks`: the finished embedder judged with mteb."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
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


def find_eval_tasks(names: Sequence[str] | None, dataset_dir: Any) -> list[Any]:
    """The tasks behind the names, before anything is trained: a misspelt one must not be found out after it."""
    if not names:
        return []
    if importlib.util.find_spec("mteb") is None:
        raise ValueError("`eval_tasks` needs mteb: pip install 'llamafactory-embed[eval]'.")
    from ...evaluation.tasks import choose_tasks

    return choose_tasks(names, dataset_dir if isinstance(dataset_dir, str) else None, option="eval_tasks")


def judge(trainer: EmbeddingTrainer, tasks: Sequence[Any], training_args: TrainingArguments) -> dict[str, float]:
    """Main scores of the tasks, on the main process; what engines have cut into shards is read back from the
    checkpoint. The results are those of `llamafactory-embed eval`, in `mteb` below `output_dir`."""
    if not tasks:
        return {}
    metrics = judge_alone(trainer, tasks, training_args) if trainer.is_world_process_zero() else {}
    wait_for_all_ranks()
    return metrics


def wait_for_all_ranks() -> None:
    """Let no rank go on to what all do together, such as saving shards before a push, while one is still judging:
    that takes hours, and NCCL gives up after half an hour. Gloo waits as long as it is told to."""
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=LONGEST_EVALUATION)
        dist.barrier(group)
        dist.destroy_process_group(group)


def judge_alone(trainer: EmbeddingTrainer, tasks: Sequence[Any], training_args: TrainingArguments) -> dict[str, float]:
    """What `judge` does on the main process."""
    from ...evaluation.run import evaluate_encoder

    output = Path(training_args.output_dir)
    if trainer.is_sharded and not training_args.do_train:
        raise ValueError(
            "`eval_tasks` of a model in shards needs its checkpoint: run `llamafactory-embed eval` on it."
        )
    encoder = (
        Encoder(output, device=training_args.device)
        if trainer.is_sharded
        else Encoder(trainer.embedding_model, trainer.processing_class)
    )
    name = f"{output.resolve().parent.name}/{output.resolve().name}"
    return evaluate_encoder(encoder, tasks, name, output / TRAINING_RESULTS)
