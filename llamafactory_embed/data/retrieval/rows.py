"""The data model of the retrieval stages: rows, tasks, and the example drawn from a row in an epoch. No torch here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """A query with the texts that answer it and texts that do not."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()

    scores: tuple[float, ...] | None = None
    """A teacher's score for each of (*positives, *negatives); a single one is the score of a scored pair."""

    instruction: str | None = None
    """The row's instruction, which replaces the task's."""

    leading_negatives: int = 0
    """This many of the first negatives are taken before others are sampled (MS MARCO with instructions)."""

    file: str = ""
    line: int = 0

    teacher_vectors: np.ndarray | None = field(default=None, compare=False)
    """A teacher's vectors [T, d] of the query, of (query, *positives) or of (query, *positives, *negatives)."""
    record: int = field(default=0, compare=False)
    """Which record of the data set it is: its place in a file of a teacher's vectors."""

    @property
    def where(self) -> str:
        """File and line, as error messages name a row."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Task:
    """A data set with its instruction; in-batch negatives only make sense within one task."""

    name: str
    rows: Sequence[Row]
    instruction: str = ""

    symmetric: bool = False
    """Query and passage are the same kind of text, so the instruction goes in front of both."""

    own_passages_only: bool = False
    """Each query is compared with its row's passages only: in classification and clustering data, another row's
    positive may well be a right answer."""

    corpus: Sequence[str] = ()
    """Every passage of a BEIR folder, which evaluation searches whatever rows are left; empty elsewhere."""

    objective: Mapping[str, Any] = field(default_factory=dict)
    """What the task's data sets and the recipe's `objectives` set for it (`hparams.objectives`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """What a row contributes to one batch: one positive and the negatives that were drawn."""

    task: str
    task_index: int
    row_index: int
    query: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...] | None
    """Teacher scores of (positive, *negatives)."""
    query_instruction: str
    passage_instruction: str
    own_passages_only: bool
    teacher_vectors: np.ndarray | None = field(default=None, compare=False)
    """[T, d] of the first T of (query, positive, *negatives)."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that the example brings into its batch."""
        return (self.query, self.positive, *self.negatives)


def sees_own_passages_only(task_name: str) -> bool:
    """The naming rule of tDRO, which tells classification and clustering tasks by their names."""
    return "clustering" in task_name or "classification" in task_name


def negatives_in_batch(objective: Mapping[str, Any], of_recipe: int) -> int:
    """How many negatives a row of a task brings to its batch: what its objective says, or else the recipe."""
    number: int = objective.get("num_negatives", of_recipe)
    return number


def choose_negatives(count: int, negatives: int, leading: int, rng: random.Random) -> tuple[int, ...]:
    """The positions of `count` of a row's negatives: leading ones first, the rest sampled.

    Where a row has fewer, each is taken once before any is taken twice, so that all rows of a batch bring equally
    many. A row without negatives brings none.
    """
    if count <= 0 or not negatives:
        return ()
    first = range(min(leading, count))
    pool = range(leading, negatives) or range(negatives)
    missing = count - len(first)
    if missing == 1:
        return (*first, pool[rng.randrange(len(pool))])  # what `sample` draws, in a tenth of its time
    sampled = rng.sample(pool, min(missing, len(pool)))
    repeated = rng.choices(pool, k=missing - len(sampled)) if missing > len(sampled) else []
    return (*first, *sampled, *repeated)


def choose_positive(positives: int, rng: random.Random) -> int:
    """The position of one of a row's positives."""
    return rng.randrange(positives) if positives > 1 else 0


def row_seed(seed: int, epoch: int, row_index: int) -> str:
    """What the random numbers of a row in an epoch begin with: the same in every process, in whatever order rows
    come."""
    return f"{seed}/{epoch}/{row_index}"


def row_random(seed: int, epoch: int, row_index: int) -> random.Random:
    """The random numbers of a row in an epoch."""
    return random.Random(row_seed(seed, epoch, row_index))


def draw_example(
    task: Task, task_index: int, row: Row, row_index: int, num_negatives: int, rng: random.Random
) -> Example:
    """Draw one positive and `num_negatives` negatives of a row, with their teacher scores."""
    positive = choose_positive(len(row.positives), rng)
    negatives = choose_negatives(num_negatives, len(row.negatives), row.leading_negatives, rng)
    scores = None
    if row.scores is not None:
        first = len(row.positives)
        scores = (row.scores[positive], *(row.scores[first + number] for number in negatives))
    instruction = row.instruction if row.instruction is not None else task.instruction
    return Example(
        task=task.name,
        task_index=task_index,
        row_index=row_index,
        query=row.query,
        positive=row.positives[positive],
        negatives=tuple(row.negatives[number] for number in negatives),
        scores=scores,
        query_instruction=instruction,
        passage_instruction=instruction if task.symmetric else "",
        own_passages_only=task.own_passages_only,
        teacher_vectors=drawn_vectors(row, positive, negatives),
    )


def drawn_vectors(row: Row, positive: int, negatives: Sequence[int]) -> np.ndarray | None:
    """The teacher's vectors of a row's query, of the positive and of the negatives that were drawn, [T, d], as far as
    there are any."""
    vectors = row.teacher_vectors
    if vectors is None:
        return None
    places = [0]
    if len(vectors) > 1:
        places.append(1 + positive)
    if len(vectors) > 1 + len(row.positives):
        places += (1 + len(row.positives) + number for number in negatives)
    return np.asarray(vectors[places], dtype=np.float32)
