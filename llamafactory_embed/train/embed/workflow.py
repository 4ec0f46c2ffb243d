"""What the workflows of embedders share: from rows to batches, and from a trainer to its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from ...data.batches import GivenRows
from ...data.retrieval.common_texts import TextsOfTasks
from ...data.retrieval.dataset import RetrievalDataset
from ...data.retrieval.plan import BatchingOptions
from ...data.retrieval.rows import Task
from ...data.retrieval.sampler import GlobalBatchSampler
from ...data.retrieval.stream import StreamedBatches, StreamedBatchSampler
from ...hparams.contrastive import RetrievalDataOptions
from ..card import RunFacts
from .card import write_model_card
from .contrastive.trainer import ContrastiveTrainer
from .tasks import AnyTask, one_process_first


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments


PLOTTED = ("loss", "eval_ndcg@10")  # what `plot_loss` draws, and the losses of tasks where there are any


def make_retrieval_batches(
    tasks: Sequence[AnyTask],
    options: RetrievalDataOptions,
    task_batching: Literal["homogeneous", "mixed"],
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
) -> tuple[RetrievalDataset | GivenRows | None, GlobalBatchSampler | StreamedBatchSampler | None]:
    """The rows to train on, and this rank's part of the global batches."""
    if not tasks:
        return None, None
    batch_size = training_args.per_device_train_batch_size * training_args.world_size
    batching = BatchingOptions(
        task_batching=task_batching,
        task_weights=options.dataset_weights,
        sampling_temperature=options.dataset_sampling_temperature,
        shuffle_rows=not finetuning_args.disable_shuffling,
    )
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    rank, world_size = training_args.process_index, training_args.world_size
    held = [task for task in tasks if isinstance(task, Task)]
    if held:
        dataset = RetrievalDataset(held, num_negatives=options.num_negatives, seed=training_args.seed)
        with one_process_first(data_args, training_args, "comparing the texts of all rows"):
            texts = TextsOfTasks(dataset)
        return dataset, GlobalBatchSampler(dataset, batch_size, batching, seed, rank, world_size, texts)

    streams = [task for task in tasks if not isinstance(task, Task)]
    batches = StreamedBatches(
        streams, batch_size, batching, options.num_negatives, seed, rank, world_size, data_args.buffer_size
    )
    count = training_args.max_steps * training_args.gradient_accumulation_steps
    return GivenRows(count * batch_size), StreamedBatchSampler(batches, count)


def evaluate_and_publish(
    trainer: ContrastiveTrainer,
    tasks: Sequence[AnyTask],
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    works: Sequence[str],
    more_metrics: Callable[[], dict[str, float]] = dict,
) -> None:
    """Evaluate if the recipe says so, and write the model card after a training; `works` are those that the stage
    builds on (`cards.sections.WORKS`)."""
    metrics: dict[str, float] = {}
    if training_args.do_eval and trainer.retrieval_evals:
        metrics = trainer.evaluate()
    metrics |= {f"eval_{name}": value for name, value in more_metrics().items()}
    if metrics:
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_train:
        trainer.publish(
            lambda: write_model_card(
                RunFacts.gather(trainer, model_args, data_args),
                trainer.embedding_model.embedding_config,
                tasks,
                [each.task for each in trainer.retrieval_evals],
                metrics,
                works,
            )
        )
