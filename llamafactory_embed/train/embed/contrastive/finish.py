"""What the workflows of embedders do with a trainer that is ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import workflow
from ..card import write_model_card
from ..tasks import AnyTask
from .trainer import ContrastiveTrainer


def train_and_save(trainer: ContrastiveTrainer, training_args: Any, finetuning_args: Any) -> None:
    """Train, leave the checkpoint, and draw the loss if the recipe says so."""
    workflow.train_and_save(trainer, training_args, finetuning_args, ["loss", "eval_ndcg@10"])


def evaluate_and_publish(
    trainer: ContrastiveTrainer,
    tasks: Sequence[AnyTask],
    model_args: Any,
    training_args: Any,
    more_metrics: Callable[[], dict[str, float]] = dict,
) -> None:
    """Evaluate if the recipe says so, and write the model card of what was trained."""
    metrics: dict[str, float] = {}
    if training_args.do_eval and trainer.retrieval_evals:
        metrics = trainer.evaluate()
    metrics |= {f"eval_{name}": value for name, value in more_metrics().items()}
    if metrics:
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_train:
        trainer.write_card = lambda: write_model_card(
            training_args.output_dir,
            trainer.embedding_model.embedding_config,
            model_args.model_name_or_path,
            tasks,
            metrics,
        )
        trainer.publish()
