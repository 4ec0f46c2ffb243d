"""`eval_tasks`: the finished embedder judged with mteb."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...encoder.encoder import Encoder
from ...evaluation.recipe import TRAINING_RESULTS
from .trainer import EmbeddingTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


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
    if not tasks or not trainer.is_world_process_zero():
        return {}
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
