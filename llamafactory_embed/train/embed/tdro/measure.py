"""How much a model has left to learn of each task, and the loss that its weights make of a batch.

Ma et al. 2024, *Task-level Distributionally Robust Optimization for Large Language Model-based Dense Retrieval*,
arXiv 2408.10613. The paper measures a task by its mean loss over its mean reference loss (`paper_ratio`); the released
program takes the mean of the ratios of single queries, whose reference losses it scales by their norm (`ratio`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....hparams.tdro import TaskMeasure


SMALLEST_REFERENCE = 1e-4
"""A query's reference loss below this, after the norm, counts as 1: a ratio to it would dominate all others."""

SMALLEST_MEAN_REFERENCE = torch.finfo(torch.float32).eps
"""A task's mean reference loss below this counts as 1: losses are computed in float32, which rounds it to 0."""


def measure_queries(losses: Tensor, reference: Tensor | None, measure: TaskMeasure, norm: float) -> Tensor:
    """What each query of a micro-batch says about its task: losses [B] and reference losses [B] → [B], at least 0.

    `norm` is the p of the norm that reference losses are divided by, 0 for none; it is taken over the micro-batch of
    all ranks, which must be given at once.
    """
    if measure == "loss":
        return losses.clamp(min=0)
    assert reference is not None
    if measure == "difference":
        return (losses - reference).clamp(min=0)
    length = torch.linalg.vector_norm(reference, norm) if norm else torch.ones(())
    scaled = reference / length if length > 0 else reference  # all 0
    scaled = torch.where(scaled < SMALLEST_REFERENCE, 1.0, scaled)
    return ((losses if measure == "ratio" else losses - reference) / scaled).clamp(min=0)


def sum_by_task(values: Tensor, tasks: Tensor, count: int) -> Tensor:
    """Values [B] of queries of the tasks [B] → their sum for each of `count` tasks."""
    return torch.zeros(count, dtype=values.dtype).index_add_(0, tasks, values)


def mean_by_task(sums: Tensor, counts: Tensor) -> Tensor:
    """Sums [G] and numbers of queries [G] → means [G]; 0 for a task without queries, which leaves its weight alone."""
    return torch.where(counts > 0, sums / counts.clamp(min=1), 0.0)


def robust_loss(losses: Tensor, tasks: Tensor, weights: Tensor, all_tasks: Tensor | None = None) -> Tensor:
    """The mean of the losses [B], each weighted with its task's weight [G].

    `all_tasks` are those of the queries of all ranks if the losses are only one rank's: the sum over ranks is then the
    loss of the joined batch.
    """
    total = weights[tasks if all_tasks is None else all_tasks].sum()
    smallest = torch.finfo(total.dtype).tiny  # without it, a batch whose tasks have all lost their weight is 0 / 0
    return (losses * weights[tasks]).sum() / total.clamp(min=smallest)


@dataclass(frozen=True)
class UpdateMeasure:
    """What the micro-batches of one update say about the tasks; a task without queries has measure 0."""

    measures: Tensor  # [G]
    counts: Tensor  # [G] queries
    losses: Tensor  # [G] means
    reference_losses: Tensor | None  # [G] means


class MeasureAccumulator:
    """Collects the micro-batches of an update.

    Measures are means over micro-batches, as in the released program, and a task that is missing in one counts as 0
    there. `paper_ratio` compares means over the whole update instead, so that it does not
    depend on how a batch is cut.
    """

    def __init__(self, task_count: int, measure: TaskMeasure, norm: float) -> None:
        self.task_count = task_count
        self.measure: TaskMeasure = measure
        self.norm = norm
        self._clear()

    def _clear(self) -> None:
        self._micro_batches = 0
        self._counts, self._losses, self._reference, self._measures = torch.zeros(
            4, self.task_count, dtype=torch.float64
        )
        self._has_reference = False

    def add(self, losses: Tensor, reference: Tensor | None, tasks: Tensor) -> None:
        """One micro-batch: losses [B] and reference losses [B] of queries of the tasks [B], of all ranks."""
        tasks = tasks.cpu()
        losses = losses.detach().cpu().double()
        reference = None if reference is None else reference.cpu().double()
        counts = sum_by_task(torch.ones_like(losses), tasks, self.task_count)
        self._micro_batches += 1
        self._counts += counts
        self._losses += sum_by_task(losses, tasks, self.task_count)
        if reference is not None:
            self._has_reference = True
            self._reference += sum_by_task(reference, tasks, self.task_count)
        if self.measure != "paper_ratio":
            values = measure_queries(losses, reference, self.measure, self.norm)
            self._measures += mean_by_task(sum_by_task(values, tasks, self.task_count), counts)

    def finish(self) -> UpdateMeasure:
        """The measures of the update; the next micro-batch begins another."""
        losses, reference = (mean_by_task(sums, self._counts) for sums in (self._losses, self._reference))
        if self.measure == "paper_ratio":
            measures = losses / torch.where(reference < SMALLEST_MEAN_REFERENCE, 1.0, reference)
        else:
            measures = self._measures / self._micro_batches
        update = UpdateMeasure(measures, self._counts, losses, reference if self._has_reference else None)
        self._clear()
        return update
