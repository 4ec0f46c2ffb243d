"""The loss of a task as one function of a batch's embeddings, and of a run whose tasks have different ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ....hparams.contrastive import LOSSES, ContrastiveOptions
from ....hparams.objectives import Objective
from ..gather import gather
from ..losses import FUNCTIONS, SET_FUNCTIONS
from ..losses.distillation import kl_distillation
from ..losses.rows import AnyRows, EmbeddedRows, SetRows
from ..losses.vectors import spread_out, vector_distillation
from .batch import ContrastiveBatch
from .guide import Guide
from .projection import TeacherProjection
from .quantizer import EmbeddingQuantizer


class ContrastiveObjective:
    """Call it with the embeddings of a batch, [2B + B*K, d], or [V, d] where texts have several."""

    def __init__(
        self,
        options: ContrastiveOptions,
        projection: TeacherProjection | None = None,
        guide: Guide | None = None,
        quantizer: EmbeddingQuantizer | None = None,
    ) -> None:
        self.options = options
        self.facts = LOSSES[options.contrastive_loss]
        self.function = FUNCTIONS[options.contrastive_loss]
        self.projection = projection
        self.quantizer = quantizer
        self.guide = guide if options.guide_model is not None else None

    def __call__(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        self._check(batch)
        guided: EmbeddedRows | None = None
        if self.guide is not None:
            assert batch.examples is not None
            guided = self.guide.embed(batch.examples, embeddings.device)
        if batch.vectors_each is not None:
            sets = dataclasses.replace(batch.with_vectors(embeddings.float()), guide=guided)
            return torch.stack([weight * self._loss_of_sets(sets.prefix(n)) for weight, n in self._cuts(sets)]).sum()

        rows = dataclasses.replace(batch.with_embeddings(embeddings.float()), guide=guided)
        if self.quantizer is not None:
            self.quantizer.measure(rows)
        losses = [weight * self._loss(self._as_stored(rows.prefix(n))) for weight, n in self._cuts(rows)]
        if self.options.vector_weight and rows.teacher_vectors is not None:
            losses.append(self.options.vector_weight * self._distance_to_teacher(self._as_stored(rows)))
        return torch.stack(losses).sum()

    def _loss(self, rows: EmbeddedRows) -> Tensor:
        """The loss, with `kl_weight` the divergence from the teacher if there is one for these rows, and with
        `spread_out_weight` the regularizer."""
        is_distance = self.facts.needs_vectors
        loss = self._distance_to_teacher(rows) if is_distance else self.function(rows, self.options).mean()
        if self.options.spread_out_weight:
            loss = loss + self.options.spread_out_weight * spread_out(rows).mean()
        return loss + self._divergence(rows)

    def _loss_of_sets(self, rows: SetRows) -> Tensor:
        """The same without what is about one vector a text (`hparams.multi_vector`)."""
        loss = SET_FUNCTIONS[self.options.contrastive_loss](rows, self.options).mean()
        return loss + self._divergence(rows)

    def _divergence(self, rows: AnyRows) -> Tensor | float:
        if not self.options.kl_weight or not has_teacher(rows):
            return 0.0
        return self.options.kl_weight * kl_distillation(rows, self.options).mean()

    def _distance_to_teacher(self, rows: EmbeddedRows) -> Tensor:
        """Of whole embeddings: their first numbers have no counterpart in a teacher's vector."""
        if self.projection is not None:
            return self.projection.distance(rows, self.options).mean()
        return vector_distillation(rows, self.options).mean()

    def _cuts(self, rows: AnyRows) -> Sequence[tuple[float, int]]:
        """Weights and sizes of Matryoshka (Kusupati et al. 2022): the first numbers of an embedding must be a good
        embedding themselves. Losses on cosines normalize each prefix anew; with dot products prefixes stay as they
        are."""
        dims, size = self.options.matryoshka_dims, rows.size
        if dims is None:
            return [(1.0, size)]
        if not dims or not all(0 < dim <= size for dim in dims):
            raise ValueError(f"`matryoshka_dims` must lie between 1 and the embedding's size {size}, not {dims}.")
        return list(zip(self.options.matryoshka_weights or [1.0] * len(dims), dims, strict=True))

    def _as_stored(self, rows: EmbeddedRows) -> EmbeddedRows:
        return rows if self.quantizer is None else self.quantizer.as_stored(rows)

    def _check(self, batch: ContrastiveBatch) -> None:
        name = self.options.contrastive_loss
        if self.facts.needs_negatives and batch.negatives_per_row == 0:
            raise ValueError(
                f"`contrastive_loss: {name}` compares a query's positive with its own negatives, but the rows have "
                "none: set `num_negatives` to at least 1 and use data with negatives."
            )
        if self.facts.needs_scores and batch.scores is None:
            raise ValueError(f"`contrastive_loss: {name}` needs data with a `score` column; these rows have none.")
        if self.facts.needs_vectors and batch.teacher_vectors is None:
            raise ValueError(
                f"`contrastive_loss: {name}` needs data with `teacher_vectors` (docs/data.md); these rows have none."
            )


class TaskObjectives:
    """The losses of a run: each batch is trained for what its task is trained for.

    A homogeneous batch has one task; where tasks are mixed all have the same objective.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        curves: LossCurves | None = None,
        projection: TeacherProjection | None = None,
        guide: Guide | None = None,
        quantizer: EmbeddingQuantizer | None = None,
    ) -> None:
        """`objectives` are those of the tasks by their numbers."""
        self.objectives = objectives
        self.functions = [ContrastiveObjective(each.options, projection, guide, quantizer) for each in objectives]
        self.curves = curves

    def __call__(self, embeddings: Tensor, batch: ContrastiveBatch) -> Tensor:
        task = int(batch.task_indices[0])
        loss = self.functions[task](embeddings, batch)
        if self.curves is not None:
            self.curves.add(task, loss)
        return self.objectives[task].weight * loss


class LossCurves:
    """Collects the losses of the tasks, before their weights, and says their means since the log's entry before."""

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        self.names = [f"loss/{task}" for task in tasks]
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._sums, self._counts = torch.zeros(2, len(self.names), device=self.device)

    def add(self, task: int, loss: Tensor) -> None:
        """The loss of one micro-batch; nothing waits for its value."""
        self._sums[task] += loss.detach()
        self._counts[task] += 1

    def take_means(self) -> dict[str, float]:
        """The mean of every task that had a batch, over all ranks; all of them have to ask."""
        sums, counts = gather(torch.stack([self._sums, self._counts]).unsqueeze(0)).sum(dim=0).tolist()
        self._clear()
        return {name: total / count for name, total, count in zip(self.names, sums, counts, strict=True) if count}


def has_teacher(rows: AnyRows) -> bool:
    """Whether each of several passages of every row has a score, rather than the row as a scored pair, or nothing."""
    return rows.scores is not None and rows.scores.shape[1] == rows.passages_each > 1
