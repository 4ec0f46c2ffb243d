"""`stage: contrastive`, from the recipe to the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.ploting import plot_loss
from llamafactory.model import load_tokenizer

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.evalset import build_retrieval_eval
from ....data.retrieval.rows import RetrievalDataset, Task
from ....data.retrieval.sampler import GlobalBatchSampler, SamplingOptions
from ....data.retrieval.stream import StreamedBatches
from ....hparams.contrastive import ContrastiveOptions
from ....model.packed import tokens_per_batch
from ..card import write_model_card
from ..loading import embedding_config, load_embedding_model_for_training, set_attention_dropout
from ..streaming import StreamedBatchSampler, StreamedExamples
from ..tasks import AnyTask, first_rows, load_train_and_eval_tasks
from .batch import ContrastiveCollator
from .trainer import ContrastiveTrainer


logger = logging.get_logger(__name__)


def run_contrastive(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    generating_args: Any,
    callbacks: list[Any] | None = None,
) -> None:
    """Train and evaluate an embedder; called by the host's tuner."""
    options: ContrastiveOptions = finetuning_args.stage_options
    tasks, eval_tasks = load_train_and_eval_tasks(options, model_args, data_args, training_args)
    retrieval_evals = [build_retrieval_eval(task) for task in eval_tasks]
    check_contrast(options, tasks, training_args)
    dataset, batch_sampler = make_batches(tasks, options, data_args, training_args, finetuning_args)

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    config = embedding_config(
        options,
        data_args.cutoff_len,
        model_args,
        tasks or eval_tasks,
        similarity=options.similarity,
        matryoshka_dims=options.matryoshka_dims,
    )
    model = load_embedding_model_for_training(tokenizer, config, model_args, finetuning_args, training_args)
    if options.simcse_dropout is not None:
        set_attention_dropout(model.decoder, options.simcse_dropout)

    trainer = ContrastiveTrainer(
        model=model,
        options=options,
        retrieval_evals=retrieval_evals,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=ContrastiveCollator(
            EmbeddingTokenizer(tokenizer, config),
            options.grad_cache_tokens or tokens_per_batch(options.max_tokens_per_batch, training_args.device),
        ),
        batch_sampler=batch_sampler,
        recipe=finetuning_args.recipe,
        train_dataset=dataset,
        eval_dataset=retrieval_evals or None,
        callbacks=callbacks,
        **tokenizer_module,
    )

    # Training
    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", train_result.metrics)
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()
        if trainer.is_world_process_zero() and finetuning_args.plot_loss:
            plot_loss(training_args.output_dir, keys=["loss", "eval_ndcg@10"])

    # Evaluation
    metrics: dict[str, float] = {}
    if training_args.do_eval and retrieval_evals:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    # Create model card
    if training_args.do_train:
        trainer.write_card = lambda: write_model_card(
            training_args.output_dir, model.embedding_config, model_args.model_name_or_path, tasks, metrics
        )
        trainer.publish()


def make_batches(
    tasks: Sequence[AnyTask], options: ContrastiveOptions, data_args: Any, training_args: Any, finetuning_args: Any
) -> tuple[RetrievalDataset | StreamedExamples | None, GlobalBatchSampler | StreamedBatchSampler | None]:
    """The rows to train on, and this rank's part of the global batches."""
    if not tasks:
        return None, None
    batch_size = training_args.per_device_train_batch_size * training_args.world_size
    sampling = SamplingOptions(
        task_batching=options.task_batching,
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


def check_contrast(options: ContrastiveOptions, tasks: Sequence[AnyTask], training_args: Any) -> None:
    """Refuse what could only give a loss of 0: a query that has nothing but its positive to choose from."""
    if options.contrastive_loss != "info_nce" or not tasks:
        return
    others = training_args.per_device_train_batch_size - 1
    if options.cross_device_negatives:
        others += training_args.per_device_train_batch_size * (training_args.world_size - 1)
    looked_at = [first_rows(task, 8) for task in tasks]
    has_negatives = options.num_negatives > 0 and all(rows[0].negatives for rows in looked_at)
    if others == 0 and not has_negatives:
        raise ValueError(
            "`per_device_train_batch_size: 1` without negatives leaves a query nothing to be compared with, and a "
            "loss of 0: raise it, or use data with negatives and `num_negatives` of at least 1."
        )
    is_plain_text = all(row.positives == (row.query,) for rows in looked_at for row in rows)
    if options.simcse_dropout is None and is_plain_text:
        raise ValueError(
            "The data are plain texts, each its own positive, which a model without dropout cannot tell apart: set "
            "`simcse_dropout` (LLM2Vec uses 0.3), or use rows of query and positive."
        )
