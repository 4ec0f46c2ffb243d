"""What workflows have in common: from rows of documents to batches, and from a trainer to its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llamafactory.extras.ploting import plot_loss
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HfTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.document_batches import DocumentBatches, GivenRows, StreamedDocumentBatches
from ..hparams.run import RunOptions, TokenBudgetOptions
from .bad_steps import BadSteps
from .failures import failures_in_a_sentence
from .interruption import SaveAtSignal, signals_of
from .token_budget import token_budget_of
from .trainer import Batches, WrappedModelTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, TrainingArguments


def make_batches(
    rows: Any, training_args: TrainingArguments, finetuning_args: FinetuningArguments
) -> tuple[GivenRows | None, Batches | None]:
    """This rank's part of the global batches, and the data set that the Trainer wants to see beside them."""
    if rows is None or not training_args.do_train:
        return None, None
    per_rank, rank, ranks = (
        training_args.per_device_train_batch_size,
        training_args.process_index,
        training_args.world_size,
    )
    if not hasattr(rows, "__len__"):
        count = training_args.max_steps * training_args.gradient_accumulation_steps
        return GivenRows(count * per_rank * ranks), StreamedDocumentBatches(
            rows, per_rank, count, rank=rank, world_size=ranks
        )
    batches = DocumentBatches(
        rows,
        per_rank,
        training_args.seed if training_args.data_seed is None else training_args.data_seed,
        rank=rank,
        world_size=ranks,
        shuffle=not finetuning_args.disable_shuffling,
        drop_last=training_args.dataloader_drop_last,
    )
    return GivenRows(len(rows)), batches


def train_and_save(
    trainer: WrappedModelTrainer,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    plotted: Sequence[str],
) -> None:
    """Train, write the checkpoint and the host's files, and draw the metrics `plotted` if the recipe says so."""
    options: RunOptions = finetuning_args.stage_options
    if options.stop_after_n_steps is not None:
        trainer.add_callback(StopAfterSteps(options.stop_after_n_steps))
    if options.bad_loss == "skip" and trainer.is_deepspeed_enabled:
        raise ValueError(
            "`bad_loss: skip`: DeepSpeed takes its step by itself; leave it out, or run without DeepSpeed."
        )
    if isinstance(options, TokenBudgetOptions) and options.auto_token_budget:
        trainer.token_budget = token_budget_of(trainer)
    trainer.add_callback(BadSteps(trainer, options.bad_loss, options.bad_loss_limit))
    at_signal = SaveAtSignal(signals_of(options.preemption_signal))
    trainer.add_callback(at_signal)
    trainer.data_digests = finetuning_args.data_digests
    try:
        with failures_in_a_sentence(trainer):
            train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    finally:
        at_signal.restore()
    at_signal.exit_if_received(trainer.state)
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and finetuning_args.plot_loss:
        logged = set().union(*trainer.state.log_history)  # without an evaluation there is none of its metrics
        plot_loss(training_args.output_dir, keys=[key for key in plotted if key == "loss" or key in logged])


def train_and_evaluate(
    trainer: WrappedModelTrainer,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    plotted: Sequence[str],
) -> dict[str, float]:
    """Train and evaluate as the recipe asks, and return the metrics after the last step."""
    if training_args.do_train:
        train_and_save(trainer, training_args, finetuning_args, plotted)
    metrics: dict[str, float] = {}
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    return metrics


class StopAfterSteps(TrainerCallback):
    """Ends training at a step. The schedule stays that of the whole run, and the run ends as at `max_steps`: with its
    last evaluation, checkpoint and card."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(
        self, args: HfTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= self.steps:  # the Trainer would take one more step before it asks
            raise ValueError(
                f"`resume_from_checkpoint` has reached step {state.global_step}, and `stop_after_n_steps: "
                f"{self.steps}` leaves nothing to train: raise it, or use the checkpoint as it is."
            )

    def on_step_end(
        self, args: HfTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= self.steps:
            control.should_training_stop = True
            is_late_enough = args.eval_delay <= state.global_step
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS and is_late_enough
            control.should_save |= args.save_strategy == SaveStrategy.STEPS
        return control
