"""Data and objectives that do not suit each other, found before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ....hparams.contrastive import LOSSES, ContrastiveOptions
from ....hparams.objectives import Objective
from ..tasks import AnyTask, first_rows
from .simcse import refuse_equal_views


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


LOOKED_AT = 8  # rows of a task


def check_teacher(options: ContrastiveOptions, objectives: Mapping[str, Objective], tasks: Sequence[AnyTask]) -> None:
    """Refuse `kl_weight` where it could have no effect, or one that depends on which rows share a batch."""
    asked = [task for task in tasks if objectives[task.name].options.kl_weight]
    if not asked:
        return
    without = [
        task.name for task in asked if not all(row.scores and row.negatives for row in first_rows(task, LOOKED_AT))
    ]
    if len(without) == len(asked):
        raise ValueError(
            "`kl_weight` needs a teacher's scores of positives and negatives, and no data set of the recipe has a "
            "`score` column with negatives: add one, or leave `kl_weight` out."
        )
    if without and options.task_batching == "mixed":
        raise ValueError(
            f"`task_batching: mixed` would put rows with and without a teacher's scores into one batch, for which "
            f"`kl_weight` has no effect: add scores to {', '.join(without)}, or use `task_batching: homogeneous`."
        )


def check_taught(options: ContrastiveOptions, objectives: Mapping[str, Objective], tasks: Sequence[AnyTask]) -> None:
    """Refuse losses of scores, or of a teacher's vectors, for tasks whose rows have none."""
    for task in tasks:
        name = objectives[task.name].options.contrastive_loss
        facts = LOSSES[name]
        rows = first_rows(task, LOOKED_AT)
        if facts.needs_scores and not all(row.scores for row in rows):
            raise ValueError(
                f"Task `{task.name}`: `contrastive_loss: {name}` needs data with a `score` column; its rows have none."
            )
        if facts.needs_vectors and not all(row.teacher_vectors is not None for row in rows):
            raise ValueError(
                f"Task `{task.name}`: `contrastive_loss: {name}` needs data with `teacher_vectors` (docs/data.md); "
                "its rows have none."
            )
    asked = [task for task in tasks if objectives[task.name].options.vector_weight]
    learns_vectors = asked or any(LOSSES[each.options.contrastive_loss].needs_vectors for each in objectives.values())
    if tasks and options.teacher_projection and not learns_vectors:
        raise ValueError(
            "`teacher_projection` maps embeddings to a teacher's vectors, which no loss here uses: set "
            "`vector_weight`, or leave it out."
        )
    without = [task.name for task in asked if any(row.teacher_vectors is None for row in first_rows(task, LOOKED_AT))]
    if without and options.task_batching == "mixed":
        raise ValueError(
            f"`task_batching: mixed` would put rows with and without a teacher's vectors into one batch, for which "
            f"`vector_weight` has no effect: add them to {', '.join(without)}, or use `task_batching: homogeneous`."
        )
    if asked and len(without) == len(asked):
        raise ValueError(
            "`vector_weight` needs a teacher's vectors, and no task that it is set for has `teacher_vectors`: add "
            "them (docs/data.md), or leave `vector_weight` out."
        )


def check_contrast(
    options: ContrastiveOptions,
    objectives: Mapping[str, Objective],
    tasks: Sequence[AnyTask],
    training_args: TrainingArguments,
) -> None:
    """Refuse data and options whose loss can only be 0: a query must have more to choose from than its positive."""
    contrasted = [task for task in tasks if LOSSES[objectives[task.name].options.contrastive_loss].in_batch]
    if not contrasted:
        return
    others = training_args.per_device_train_batch_size - 1
    if options.cross_device_negatives:
        others += training_args.per_device_train_batch_size * (training_args.world_size - 1)
    looked_at = {task.name: first_rows(task, LOOKED_AT) for task in contrasted}
    has_negatives = all(
        objectives[name].options.num_negatives > 0 and rows[0].negatives for name, rows in looked_at.items()
    )
    if others == 0 and not has_negatives:
        raise ValueError(
            "`per_device_train_batch_size: 1` without negatives leaves a query nothing to be compared with, and a "
            "loss of 0: raise it, or use data with negatives and set `num_negatives` to at least 1."
        )
    if options.simcse_dropout is None:
        refuse_equal_views([row for rows in looked_at.values() for row in rows])
