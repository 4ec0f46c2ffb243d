"""`stage: tdro`, from the recipe to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras import logging
from llamafactory.model import load_tokenizer

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.dataset import RetrievalDataset
from ....data.retrieval.evalset import build_retrieval_eval
from ....data.retrieval.rows import Task
from ....data.retrieval.sampler import GlobalBatchSampler
from ....hparams.tdro import TdroOptions
from ....loading.embedder import with_mask_token
from ....model.packed import tokens_per_batch
from ...checks import check_tdro_arguments
from ...workflow import train_and_save
from ..tasks import embedding_config, load_train_and_eval_tasks
from ..workflow import PLOTTED, evaluate_and_publish, make_retrieval_batches
from .batch import TdroCollator
from .history import PICTURE_NAME, closing_table, draw_weights
from .reference import ModelLoader
from .reference_cache import examples_of_run
from .task_weights import TaskWeights, start_weights
from .trainer import TdroTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


logger = logging.get_logger(__name__)


def run_tdro(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Find the weights of the tasks with a proxy model; called by the host's tuner."""
    options: TdroOptions = finetuning_args.stage_options
    check_tdro_arguments(options, data_args, training_args, finetuning_args)
    loaded, eval_tasks = load_train_and_eval_tasks(options, model_args, data_args, training_args, objectives={})
    tasks = [task for task in loaded if isinstance(task, Task)]
    check_tasks(options, tasks)
    names, sizes = [task.name for task in tasks], [len(task.rows) for task in tasks]
    start = start_weights(options.tdro_start_weights, names)
    weights = TaskWeights(start, options)
    retrieval_evals = [build_retrieval_eval(task) for task in eval_tasks]
    dataset, batch_sampler = make_retrieval_batches(tasks, options, "mixed", data_args, training_args, finetuning_args)
    assert isinstance(dataset, RetrievalDataset)
    assert isinstance(batch_sampler, GlobalBatchSampler)

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    config = embedding_config(options, data_args.cutoff_len, model_args, tasks, similarity=options.similarity)
    config = with_mask_token(config, options.mask_token, tokenizer, model_args)
    collator = TdroCollator(
        EmbeddingTokenizer(tokenizer, config),
        options.grad_cache_tokens
        or tokens_per_batch(options.max_tokens_per_batch, training_args.device, training=True),
    )
    loader = ModelLoader(options, config, tokenizer, collator, model_args, training_args, finetuning_args)
    proxy, reference = loader.load(
        lambda: examples_of_run(dataset, batch_sampler, training_args, options.stop_after_n_steps)
    )

    trainer = TdroTrainer(
        model=proxy,
        options=options,
        weights=weights,
        tasks=names,
        sizes=sizes,
        reference=reference,
        retrieval_evals=retrieval_evals,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        batch_sampler=batch_sampler,
        recipe=finetuning_args.recipe,
        train_dataset=dataset,
        eval_dataset=retrieval_evals or None,
        callbacks=callbacks,
        **tokenizer_module,
    )
    train_and_save(trainer, training_args, finetuning_args, PLOTTED)
    if trainer.is_world_process_zero():
        draw_weights(Path(training_args.output_dir) / PICTURE_NAME, trainer.history)
        print(closing_table(trainer.history, sizes, weights, start))
    evaluate_and_publish(trainer, tasks, model_args, data_args, training_args, works=["tdro"])


def check_tasks(options: TdroOptions, tasks: Sequence[Task]) -> None:
    """Refuse tasks that cannot be weighed against one another."""
    if len(tasks) == 1:
        raise ValueError(
            f"`dataset` holds one task, `{tasks[0].name}`, which would keep all the weight: name at least two."
        )
    for task in tasks:
        if task.objective:
            raise ValueError(
                f"`stage: tdro` compares the losses of tasks, which must be the same, and `{task.name}` has an "
                "`objective` of its own in `dataset_info.json`: give this run an entry without, and set it under "
                "`objectives` of the contrastive stage."
            )
        if len(task.rows) < options.num_negatives:
            raise ValueError(
                f"`dataset`: task `{task.name}` has {len(task.rows)} rows, fewer than `num_negatives: "
                f"{options.num_negatives}`: lower it, or leave the task out."
            )
        if options.num_negatives and not task.rows[0].negatives:
            raise ValueError(
                f"`dataset`: task `{task.name}` has no negatives, and `num_negatives: {options.num_negatives}` "
                "compares queries with their own hard negatives: mine some, or leave the task out."
            )
    empty = [percent for percent in options.tdro_top_percents if len(tasks) * percent < 100]
    if empty:
        logger.warning_rank0(
            f"`tdro_top_percents`: {', '.join(map(str, empty))} percent of {len(tasks)} tasks is less than one task; "
            "these files are not written."
        )
