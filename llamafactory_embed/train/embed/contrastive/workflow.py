"""`stage: contrastive`, from the recipe to the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafactory.model import load_tokenizer

from ....data.embedding_tokenizer import EmbeddingTokenizer
from ....data.retrieval.evalset import build_retrieval_eval
from ....hparams.contrastive import ContrastiveOptions
from ....hparams.objectives import Objective, compared_by, objectives_of_tasks, read_objectives, served_sizes
from ....loading.embedder import load_embedding_model_for_training, with_mask_token
from ....model.packed import tokens_per_batch
from ...workflow import train_and_save
from ..eval_tasks import find_eval_tasks, judge_finished_model
from ..tasks import embedding_config, load_train_and_eval_tasks
from ..workflow import PLOTTED, evaluate_and_publish, make_retrieval_batches
from .batch import ContrastiveCollator
from .checks import check_contrast, check_taught, check_teacher
from .guide import Guide
from .objective import LossCurves, TaskObjectives
from .projection import TeacherProjection
from .quantizer import EmbeddingQuantizer
from .simcse import set_attention_dropout
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
    settings = read_objectives(options)
    tasks, eval_tasks = load_train_and_eval_tasks(options, model_args, data_args, training_args, settings)
    objectives = objectives_of_tasks(options, {task.name: task.objective for task in tasks})
    main = next(iter(objectives.values()), Objective(options))
    retrieval_evals = [build_retrieval_eval(task) for task in eval_tasks]
    check_contrast(options, objectives, tasks, training_args)
    check_teacher(options, objectives, tasks)
    check_taught(options, objectives, tasks)
    mteb_tasks = find_eval_tasks(options.eval_tasks, data_args.dataset_dir)
    dataset, batch_sampler = make_retrieval_batches(
        tasks, options, options.task_batching, data_args, training_args, finetuning_args
    )

    tokenizer_module = load_tokenizer(model_args)
    tokenizer = tokenizer_module["tokenizer"]
    sizes = served_sizes(list(objectives.values()) or [main])
    config = embedding_config(
        options,
        data_args.cutoff_len,
        model_args,
        tasks or eval_tasks,
        similarity=compared_by(main.options),
        matryoshka_dims=sizes,
        multi_vector=options.multi_vector,
    )
    config = with_mask_token(config, options.mask_token, tokenizer, model_args)
    has_several = len(tasks) > 1 and options.task_batching == "homogeneous"
    curves = LossCurves([task.name for task in tasks], training_args.device) if has_several else None
    projection = TeacherProjection.of(options, training_args.learning_rate) if tasks else None
    guide = Guide(options.guide_model, training_args.device) if options.guide_model and tasks else None
    quantizer = EmbeddingQuantizer.of(options, sizes)
    model = load_embedding_model_for_training(tokenizer, config, model_args, finetuning_args, training_args)
    if options.simcse_dropout is not None:
        set_attention_dropout(model.decoder, options.simcse_dropout)

    trainer = ContrastiveTrainer(
        model=model,
        options=options,
        objective=TaskObjectives(list(objectives.values()), curves, projection, guide, quantizer),
        curves=curves,
        projection=projection,
        quantizer=quantizer,
        retrieval_evals=retrieval_evals,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=ContrastiveCollator(
            EmbeddingTokenizer(tokenizer, config),
            options.grad_cache_tokens
            or tokens_per_batch(options.max_tokens_per_batch, training_args.device, training=True),
            keep_examples=guide is not None,
        ),
        batch_sampler=batch_sampler,
        recipe=finetuning_args.recipe,
        train_dataset=dataset,
        eval_dataset=retrieval_evals or None,
        callbacks=callbacks,
        **tokenizer_module,
    )

    if training_args.do_train:
        drawn = [*PLOTTED, *(curves.names if curves is not None else [])]
        if quantizer is not None:
            drawn.append(f"eval_{quantizer.precision}_ndcg@10")
        train_and_save(trainer, training_args, finetuning_args, drawn)
    evaluate_and_publish(
        trainer,
        tasks,
        model_args,
        data_args,
        training_args,
        works=["infonce"],
        more_metrics=lambda: judge_finished_model(trainer, mteb_tasks, training_args),
    )
