"""The tasks a recipe trains and evaluates on."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from ...data.retrieval.reader import load_tasks
from ...data.retrieval.rows import Task
from ...hparams.contrastive import RetrievalDataOptions


def load_train_and_eval_tasks(
    options: RetrievalDataOptions, model_args: Any, data_args: Any, training_args: Any
) -> tuple[list[Task], list[Task]]:
    """Rows of `dataset` and `eval_dataset`, or a part of each task (`val_size`), before any model is loaded."""

    def load(names: list[str] | None) -> list[Task]:
        if not names:
            return []
        return load_tasks(
            names,
            data_args.dataset_dir,
            max_samples=data_args.max_samples,
            skip_bad_rows=options.skip_bad_rows,
            num_negatives=options.num_negatives,
            seed=training_args.seed,
        )

    tasks = load(data_args.dataset) if training_args.do_train or not data_args.eval_dataset else []
    eval_tasks = load(data_args.eval_dataset)
    if data_args.val_size > 0 and not eval_tasks:
        tasks, eval_tasks = split_tasks(tasks, data_args.val_size, training_args.seed)
    return (tasks if training_args.do_train else []), eval_tasks


def split_tasks(tasks: list[Task], val_size: float, seed: int) -> tuple[list[Task], list[Task]]:
    """Hold out a part of each task: a share of its rows below 1, a number of rows from 1 on (as in the host)."""
    train, held_out = [], []
    for task in tasks:
        count = int(val_size) if val_size >= 1 else max(1, round(len(task.rows) * val_size))
        if count >= len(task.rows):
            raise ValueError(
                f"`val_size: {val_size}` would hold out all {len(task.rows)} rows of task `{task.name}`: lower it."
            )
        order = list(range(len(task.rows)))
        random.Random(seed).shuffle(order)
        held_out.append(dataclasses.replace(task, rows=[task.rows[index] for index in sorted(order[:count])]))
        train.append(dataclasses.replace(task, rows=[task.rows[index] for index in sorted(order[count:])]))
    return train, held_out
