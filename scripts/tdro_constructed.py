"""tDRO where task weights must help: tasks of unequal size and noise share the budget of a small embedder.

    python scripts/tdro_constructed.py --seeds 0 1 2 3 4

A task is a list of items; a query asks for its item, and the passages are that item and others of the task. The
embedder is a table: an item that was never drawn is not known, so a task of many items needs many rows, and one of few
items wastes what it gets beyond a few. Measures, task weights and losses are those of `stage: tdro`; transformers is
not involved, and the stages of a seed take a second.

For each case and measure: stage 0 (uniform), stage 1 (weights), stage 2 by these weights, and a uniform run from the
same start to compare it with. Runs are judged by the mean reciprocal rank of each item among all of its task, without
noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from llamafactory_embed.hparams.tdro import TaskMeasure, TdroOptions
from llamafactory_embed.train.embed.losses.own_passages import own_passages
from llamafactory_embed.train.embed.losses.rows import EmbeddedRows
from llamafactory_embed.train.embed.tdro.measure import MeasureAccumulator, robust_loss
from llamafactory_embed.train.embed.tdro.task_weights import TaskWeights


EMBEDDING_SIZE = 32
NEGATIVES = 4
BATCH = 64
STEPS = 200
LEARNING_RATE = 10.0


@dataclass(frozen=True)
class Case:
    """Tasks by their numbers of items and their noise: the share of rows whose positive is any item of the task."""

    sizes: tuple[int, ...]
    noise: tuple[float, ...]

    @property
    def learnable(self) -> Tensor:
        """The tasks that are not noise alone, [G] bool."""
        return torch.tensor(self.noise) < 1

    @property
    def uniform(self) -> list[float]:
        return [1 / len(self.sizes)] * len(self.sizes)


CASES = {
    # Four tasks that are learned soon, with rows that nobody can learn, and two large ones without such rows.
    "noisy": Case((10, 20, 30, 40, 200, 300), (0.2, 0.2, 0.2, 0.2, 0.0, 0.0)),
    # The same without noise: the reference's losses of the small tasks go to 0.
    "clean": Case((10, 20, 30, 40, 200, 300), (0.0,) * 6),
    # The first and a task in which nothing can be learned.
    "unlearnable": Case((10, 20, 30, 40, 200, 300, 200), (0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 1.0)),
}


class Rows:
    """Draws rows of tasks; items are numbered through all tasks."""

    def __init__(self, case: Case, seed: int) -> None:
        self.sizes = torch.tensor(case.sizes)
        self.firsts = self.sizes.cumsum(0) - self.sizes
        self.noise = torch.tensor(case.noise)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, shares: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch: tasks [B], queries [B], and passages [B, 1 + K], of which the first should be the query's item."""
        tasks = torch.multinomial(torch.tensor(shares), BATCH, replacement=True, generator=self.generator)
        queries, others = self._items(tasks, 1).squeeze(1), self._items(tasks, 1).squeeze(1)
        is_noise = torch.rand(BATCH, generator=self.generator) < self.noise[tasks]
        positives = torch.where(is_noise, others, queries)
        negatives = self._items(tasks, NEGATIVES)
        firsts, sizes = self.firsts[tasks].unsqueeze(1), self.sizes[tasks].unsqueeze(1)
        next_ones = firsts + (negatives - firsts + 1) % sizes
        negatives = torch.where(negatives == queries.unsqueeze(1), next_ones, negatives)
        return tasks, queries, torch.cat([positives.unsqueeze(1), negatives], dim=1)

    def _items(self, tasks: Tensor, count: int) -> Tensor:
        """So many items of each row's task, [B, count]."""
        uniforms = torch.rand(len(tasks), count, generator=self.generator)
        return self.firsts[tasks].unsqueeze(1) + (uniforms * self.sizes[tasks].unsqueeze(1)).long()


class Table:
    """An embedder: a vector for each item as a query, and one for each as a passage."""

    def __init__(self, items: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.queries, self.passages = (
            torch.randn(items, EMBEDDING_SIZE, generator=generator).requires_grad_() for _ in range(2)
        )

    def losses(self, queries: Tensor, passages: Tensor, options: TdroOptions) -> Tensor:
        """Of each row, [B], as `stage: tdro` computes them."""
        return own_passages(EmbeddedRows(self.queries[queries], self.passages[passages]), options)

    @torch.no_grad()
    def reciprocal_ranks(self, case: Case) -> Tensor:
        """By task: the mean over items of 1 / rank among all items of the task, [G]."""
        of_tasks = []
        for queries, passages in zip(self.queries.split(case.sizes), self.passages.split(case.sizes), strict=True):
            similarities = F.normalize(queries, dim=-1) @ F.normalize(passages, dim=-1).T
            ranks = (similarities >= similarities.diagonal().unsqueeze(1)).sum(dim=1)
            of_tasks.append((1 / ranks).mean())
        return torch.stack(of_tasks)


def train_by_shares(case: Case, shares: Sequence[float], options: TdroOptions, start: int, draws: int) -> Table:
    """Stages 0 and 2: rows of the tasks by their shares."""
    table, rows = Table(sum(case.sizes), start), Rows(case, draws)
    optimizer = torch.optim.SGD([table.queries, table.passages], LEARNING_RATE)
    for _ in range(STEPS):
        _, queries, passages = rows.draw(shares)
        optimizer.zero_grad()
        table.losses(queries, passages, options).mean().backward()
        optimizer.step()
    return table


def find_weights(case: Case, reference: Table, options: TdroOptions, start: int, draws: int) -> list[float]:
    """Stage 1: a proxy and the weights in turn, as the trainer of `stage: tdro` does it."""
    proxy, rows = Table(sum(case.sizes), start), Rows(case, draws)
    optimizer = torch.optim.SGD([proxy.queries, proxy.passages], LEARNING_RATE)
    weights = TaskWeights(case.uniform, options)
    measures = MeasureAccumulator(len(case.sizes), options.tdro_measure, options.tdro_norm)
    for _ in range(STEPS):
        tasks, queries, passages = rows.draw(case.uniform)
        losses = proxy.losses(queries, passages, options)
        measures.add(losses, reference.losses(queries, passages, options).detach(), tasks)
        weights.update(measures.finish().measures, STEPS)
        optimizer.zero_grad()
        robust_loss(losses, tasks, weights.current.float()).backward()
        optimizer.step()
    found: list[float] = weights.current.tolist()
    return found


@dataclass(frozen=True)
class Outcome:
    """What one seed has found."""

    left_to_learn: Tensor  # [G] 1 - mean reciprocal rank of the reference
    weights: Tensor  # [G]
    uniform: Tensor  # [G] mean reciprocal ranks after a run by uniform shares
    weighted: Tensor  # [G] after one by the weights, from the same start

    def gains(self, case: Case) -> tuple[float, float]:
        """What weights add to the worst task and to the mean, of those that can be learned."""
        uniform, weighted = self.uniform[case.learnable], self.weighted[case.learnable]
        return float(weighted.min() - uniform.min()), float(weighted.mean() - uniform.mean())


def three_stages(case: Case, measure: TaskMeasure, seed: int) -> Outcome:
    """All of tDRO, beside uniform shares."""
    options = TdroOptions(tdro_measure=measure, loss_temperature=0.1)
    reference = train_by_shares(case, case.uniform, options, start=seed, draws=seed)
    weights = find_weights(case, reference, options, start=seed, draws=seed + 1_000)
    uniform, weighted = (
        train_by_shares(case, shares, options, start=seed, draws=seed + 2_000).reciprocal_ranks(case)
        for shares in (case.uniform, weights)
    )
    return Outcome(1 - reference.reciprocal_ranks(case), torch.tensor(weights), uniform, weighted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--measures", nargs="+", default=list(get_args(TaskMeasure)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "case, measure: weights | uniform | by weights (means of seeds) | worst task and mean: gain (seeds with one)"
    )
    for name, case in CASES.items():
        for measure in arguments.measures:
            outcomes = [three_stages(case, measure, seed) for seed in arguments.seeds]
            columns = [
                " ".join(f"{value:.3f}" for value in torch.stack(values).mean(dim=0).tolist())
                for values in zip(*((each.weights, each.uniform, each.weighted) for each in outcomes), strict=True)
            ]
            gains = torch.tensor([each.gains(case) for each in outcomes])
            summary = ", ".join(
                f"{mean:+.3f} ({count} of {len(outcomes)})"
                for mean, count in zip(gains.mean(dim=0).tolist(), (gains > 0).sum(dim=0).tolist(), strict=True)
            )
            print(f"{name}, {measure}: {' | '.join(columns)} | {summary}", flush=True)


if __name__ == "__main__":
    main()
