"""`stage: contrastive`, from the recipe to the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llamafactory.model import load_tokenizer

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.evalset import build_retrieval_eval
from ....hparams.contrastive import LOSSES, ContrastiveOptions
from ....loading.embedder import load_embedding_model_for_training
from ....model.packed import tokens_per_batch
from ...workflow import train_and_save
from ..eval_tasks import find_eval_tasks, judge_finished_model
from ..tasks import AnyTask, embedding_config, first_rows, load_train_and_eval_tasks
from ..workflow import PLOTTED, evaluate_and_publish, make_retrieval_batches
from .batch import ContrastiveCollator
from .objective import ContrastiveObjective
from .simcse import refuse_equal_views, set_attention_dropout
from .trainer import ContrastiveTrainer


if TYPE_CHECKING:
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )


def run_contrastive(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
    generating_args: GeneratingArguments,
    callbacks: list[Any] | None = None,
) -> None:
    """Train and evaluate an embedder; called by the host's tuner."""
    options: ContrastiveOptions = finetuning_args.stage_options
    tasks, eval_tasks = load_train_and_eval_tasks(options, model_args, data_args, training_args)
    retrieval_evals = [build_retrieval_eval(task) for task in eval_tasks]
    check_contrast(options, tasks, training_args)
    check_teacher(options, tasks)
    mteb_tasks = find_eval_tasks(options.eval_tasks, data_args.dataset_dir)
    dataset, batch_sampler = make_retrieval_batches(
        tasks, options, options.task_batching, data_args, training_args, finetuning_args
    )

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    config = embedding_config(
        options,
        data_args.cutoff_len,
        model_args,
        tasks or eval_tasks,
        similarity=LOSSES[options.contrastive_loss].similarity or options.similarity,
        matryoshka_dims=options.matryoshka_dims,
    )
    model = load_embedding_model_for_training(tokenizer, config, model_args, finetuning_args, training_args)
    if options.simcse_dropout is not None:
        set_attention_dropout(model.decoder, options.simcse_dropout)

    trainer = ContrastiveTrainer(
        model=model,
        options=options,
        objective=ContrastiveObjective(options),
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

    if training_args.do_train:
        train_and_save(trainer, training_args, finetuning_args, PLOTTED)
    evaluate_and_publish(
        trainer,
        tasks,
        model_args,
        training_args,
        more_metrics=lambda: judge_finished_model(trainer, mteb_tasks, training_args),
    )


def check_teacher(options: ContrastiveOptions, tasks: Sequence[AnyTask]) -> None:
    """Refuse `kl_weight` where it could have no effect, or one that depends on which rows share a batch."""
    if not options.kl_weight or not tasks:
        return
    without = [task.name for task in tasks if not all(row.scores and row.negatives for row in first_rows(task, 8))]
    if len(without) == len(tasks):
        raise ValueError(
            "`kl_weight` needs a teacher's scores of positives and negatives, and no data set of the recipe has a "
            "`score` column with negatives: add one, or leave `kl_weight` out."
        )
    if without and options.task_batching == "mixed":
        raise ValueError(
            f"`task_batching: mixed` would put rows with and without a teacher's scores into one batch, for which "
            f"`kl_weight` has no effect: add scores to {', '.join(without)}, or use `task_batching: homogeneous`."
        )


def check_contrast(options: ContrastiveOptions, tasks: Sequence[AnyTask], training_args: TrainingArguments) -> None:
    """Refuse data and options whose loss can only be 0: a query must have more to choose from than its positive."""
    if not LOSSES[options.contrastive_loss].in_batch or not tasks:
        return
    others = training_args.per_device_train_batch_size - 1
    if options.cross_device_negatives:
        others += training_args.per_device_train_batch_size * (training_args.world_size - 1)
    looked_at = [first_rows(task, 8) for task in tasks]
    has_negatives = options.num_negatives > 0 and all(rows[0].negatives for rows in looked_at)
    if others == 0 and not has_negatives:
        raise ValueError(
            "`per_device_train_batch_size: 1` without negatives leaves a query nothing to be compared with, and a "
            "loss of 0: raise it, or use data with negatives and set `num_negatives` to at least 1."
        )
    if options.simcse_dropout is None:
        refuse_equal_views([row for rows in looked_at for row in rows])
