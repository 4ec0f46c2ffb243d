"""The rows of a recipe as batches, in the process that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ....data.retrieval.rows import RetrievalDataset, Task
from ....data.retrieval.sampler import GlobalBatchSampler, SamplingOptions
from ....data.retrieval.stream import StreamedBatches
from ....hparams.contrastive import RetrievalDataOptions
from ..streaming import StreamedBatchSampler, StreamedExamples
from ..tasks import AnyTask


def make_batches(
    tasks: Sequence[AnyTask],
    options: RetrievalDataOptions,
    task_batching: Literal["homogeneous", "mixed"],
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
) -> tuple[RetrievalDataset | StreamedExamples | None, GlobalBatchSampler | StreamedBatchSampler | None]:
    """The rows to train on, and this rank's part of the global batches."""
    if not tasks:
        return None, None
    batch_size = training_args.per_device_train_batch_size * training_args.world_size
    sampling = SamplingOptions(
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
        return dataset, GlobalBatchSampler(dataset, batch_size, sampling, seed, rank, world_size)

    streams = [task for task in tasks if not isinstance(task, Task)]
    batches = StreamedBatches(
        streams, batch_size, sampling, options.num_negatives, seed, rank, world_size, data_args.buffer_size
    )
    count = training_args.max_steps * training_args.gradient_accumulation_steps
    return StreamedExamples(count * batch_size), StreamedBatchSampler(batches, count)
