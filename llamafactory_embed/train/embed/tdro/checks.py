"""What `stage: tdro` refuses before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamafactory.extras import logging

from ....data.retrieval.rows import Task
from ....hparams.tdro import TdroOptions


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, TrainingArguments


logger = logging.get_logger(__name__)


def check_arguments(
    options: TdroOptions,
    data_args: DataArguments,
    training_args: TrainingArguments,
    finetuning_args: FinetuningArguments,
) -> None:
    """Refuse recipes that could not end with task weights."""
    if not training_args.do_train:
        raise ValueError(
            "`stage: tdro` finds weights by training: set `do_train: true`, or evaluate its checkpoint with "
            "`stage: contrastive`."
        )
    if data_args.streaming:
        raise ValueError(
            "`streaming`: a stream does not tell the size of its task, which `stage: tdro` needs; unset it."
        )
    if finetuning_args.ref_model_adapters and not finetuning_args.ref_model:
        raise ValueError("`ref_model_adapters` needs `ref_model`: name the model that these adapters belong to.")
    if options.num_negatives < 1:
        raise ValueError(
            "`stage: tdro` compares a query with its own hard negatives only: set `num_negatives` to at least 1 "
            "(tDRO uses 7)."
        )


def check_tasks(options: TdroOptions, tasks: Sequence[Task]) -> None:
    """Refuse tasks that cannot be weighed against one another."""
    if len(tasks) == 1:
        raise ValueError(
            f"`dataset` holds one task, `{tasks[0].name}`, which would keep all the weight: name at least two."
        )
    for task in tasks:
        if len(task.rows) < options.num_negatives:
            raise ValueError(
                f"`dataset`: task `{task.name}` has {len(task.rows)} rows, fewer than `num_negatives: "
                f"{options.num_negatives}`: lower it, or leave the task out."
            )
        if not task.rows[0].negatives:
            raise ValueError(
                f"`dataset`: task `{task.name}` has no negatives, and `stage: tdro` compares queries with their own "
                "hard negatives: mine some, or leave the task out."
            )
    empty = [percent for percent in options.tdro_top_percents if len(tasks) * percent < 100]
    if empty:
        logger.warning_rank0(
            f"`tdro_top_percents`: {', '.join(map(str, empty))} percent of {len(tasks)} tasks are none; these files "
            "are not written."
        )
