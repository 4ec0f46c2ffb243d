"""Which of the passages that a query found are its hard negatives, the rows with them, and figures for the summary.

The ranks are those of tDRO (Ma et al. 2024); the margins those of NV-Retriever (Moreira et al. 2024): a passage
that scores as high as the positive is likely to be an answer that nobody marked.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .embedders import CrossEncoderScores
from .material import Material
from .options import MiningOptions
from .sources import MiningRow
from .vectors import ChunkedVectors


NEGATIVES_OF_AN_EXAMPLE = 3


# ------------------------------------------------ one ranking ------------------------------------------------


def candidates_in_window(ranking: np.ndarray, first: int, last: int, answers: Collection[int]) -> np.ndarray:
    """The ranks [first, last) of a ranking [k] of passages, without answers and missing places (-1).

    Ranks count from 0 and before anything is left out. Returned are places in the ranking, in its order.
    """
    window = ranking[first:last]
    usable = (window >= 0) & ~np.isin(window, list(answers))
    return first + np.flatnonzero(usable)


def below_near_duplicates(candidates: np.ndarray, positives: np.ndarray, most: float) -> np.ndarray:
    """Whether the largest cosine of each candidate [n, d] with a positive [p, d] is `most` or less: [n]."""
    return (_unit(candidates) @ _unit(positives).T).max(axis=1) <= most


def below_margins(
    scores: np.ndarray, positive_scores: np.ndarray, absolute: float | None, relative: float | None
) -> np.ndarray:
    """Whether each candidate's score [n] keeps its distance from the lowest of the positives' scores [p]: [n].

    The relative margin is a share of the positive score's size, so that it means the same below zero.
    """
    positive = float(positive_scores.min())
    most = min(positive - (absolute or 0.0), positive - (relative or 0.0) * abs(positive))
    return scores <= most


def sample(count: int, size: int, how: Literal["random", "first"], rng: random.Random) -> list[int]:
    """Which of `count` candidates are taken, in their order: all where there are no more than `size`."""
    if count <= size:
        return list(range(count))
    return sorted(rng.sample(range(count), size)) if how == "random" else list(range(size))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# ------------------------------------------------ rows -------------------------------------------------------


@dataclass
class Candidates:
    """What is left of one query's ranking."""

    row: MiningRow
    number: int
    """The row's number in the data."""
    passages: np.ndarray
    """[n], in the order of the ranking"""
    similarities: np.ndarray
    """[n], with the query"""
    positive_similarities: np.ndarray
    """[p], of the row's positives"""
    scores: np.ndarray | None = None
    """[p + n], the cross-encoder's"""

    def keep(self, places: np.ndarray | list[int]) -> None:
        """Keep only these places, a mask or a list."""
        self.passages = self.passages[places]
        self.similarities = self.similarities[places]
        if self.scores is not None:
            positives = len(self.positive_similarities)
            self.scores = np.concatenate([self.scores[:positives], self.scores[positives:][places]])


class Selector:
    """Chooses the negatives of some rows at a time."""

    def __init__(
        self,
        options: MiningOptions,
        material: Material,
        vectors: ChunkedVectors,
        cross_encoder: CrossEncoderScores | None,
    ) -> None:
        self.options = options
        self.material = material
        self.vectors = vectors
        self.cross_encoder = cross_encoder
        self._counts: Counter[str] = Counter()

    def select(
        self, rows: Sequence[MiningRow], hits: np.ndarray, queries: np.ndarray, first_number: int
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Output records of these rows, whose queries [Q, d] found `hits` [Q, k], and figures about them."""
        self._counts = Counter(rows=len(rows))
        each = [
            self._candidates(row, first_number + place, hits[place], queries[place]) for place, row in enumerate(rows)
        ]
        if self.options.has_margin:
            self._score(each)
            for candidates in each:
                self._apply_margins(candidates)
            self._sample(each)
        else:
            self._sample(each)
            self._score(each)
        written = [candidates for candidates in each if len(candidates.passages)]
        return [self._record(candidates) for candidates in written], self._summarize(written)

    def _candidates(self, row: MiningRow, number: int, hits: np.ndarray, query: np.ndarray) -> Candidates:
        first, last = self.options.window
        answers = self.material.answers_of(row)
        places = candidates_in_window(hits["passage"], first, last, answers)
        self._counts["known answers"] += int(np.isin(hits["passage"][first:last], list(answers)).sum())
        positives = self.vectors.gather(self.material.positions_of_positives(row))  # [p, d]
        candidates = Candidates(
            row=row,
            number=number,
            passages=hits["passage"][places],
            similarities=hits["score"][places],
            positive_similarities=positives @ query,
        )
        most = self.options.near_duplicate_similarity
        if most is not None and len(places):
            kept = below_near_duplicates(self.vectors.gather(candidates.passages), positives, most)
            self._counts["near-duplicates of a positive"] += int((~kept).sum())
            candidates.keep(kept)
        return candidates

    def _apply_margins(self, candidates: Candidates) -> None:
        positives = len(candidates.positive_similarities)
        scores, positive_scores = candidates.similarities, candidates.positive_similarities
        if candidates.scores is not None:
            scores, positive_scores = candidates.scores[positives:], candidates.scores[:positives]
        kept = below_margins(scores, positive_scores, self.options.absolute_margin, self.options.relative_margin)
        self._counts["too close to the positive's score"] += int((~kept).sum())
        candidates.keep(kept)

    def _sample(self, each: Sequence[Candidates]) -> None:
        """Each row has its own random numbers, so that the draw does not depend on chunks."""
        for candidates in each:
            rng = random.Random(f"{self.options.seed}/{candidates.number}")
            size = self.options.num_negatives
            candidates.keep(sample(len(candidates.passages), size, self.options.sampling, rng))

    def _score(self, each: Sequence[Candidates]) -> None:
        """Let the cross-encoder, if there is one, score all rows at once, so that its batches are full."""
        if self.cross_encoder is None:
            return
        texts = [[*candidates.row.positives, *self._texts(candidates)] for candidates in each]
        scores = self.cross_encoder.score(
            [
                (candidates.row.query, text)
                for candidates, passages in zip(each, texts, strict=True)
                for text in passages
            ]
        )
        ends = np.cumsum([len(passages) for passages in texts])
        for candidates, part in zip(each, np.split(scores, ends[:-1]), strict=True):
            candidates.scores = part

    def _texts(self, candidates: Candidates) -> list[str]:
        return [self.material.passages[int(number)][1] for number in candidates.passages]

    # -------------------------------------------- what is written --------------------------------------------

    def _record(self, candidates: Candidates) -> dict[str, Any]:
        row = candidates.row
        scores = None if candidates.scores is None else [round(float(score), 6) for score in candidates.scores]
        passages = self._layout_of_tdro if self.options.format == "tdro" else self._layout_of_retrieval
        record = {"query": row.query, **passages(candidates, scores)}
        if row.instruction is not None:
            record["instruction"] = row.instruction
        return record

    def _layout_of_retrieval(self, candidates: Candidates, scores: list[float] | None) -> dict[str, Any]:
        positives = candidates.row.positives
        passages: dict[str, Any] = {
            "positive": positives[0] if len(positives) == 1 else positives,
            "negative": self._texts(candidates),
        }
        return passages if scores is None else passages | {"score": scores}

    def _layout_of_tdro(self, candidates: Candidates, scores: list[float] | None) -> dict[str, Any]:
        row, passage_id = candidates.row, self.material.passage_id
        ids = row.positive_ids or [passage_id(number) for number in self.material.positions_of_positives(row)]
        ids = [*ids, *(passage_id(int(number)) for number in candidates.passages)]
        texts = [*row.positives, *self._texts(candidates)]
        passages: list[dict[str, Any]] = [{"docid": key, "text": text} for key, text in zip(ids, texts, strict=True)]
        for passage, score in zip(passages, scores or (), strict=False):
            passage["ce_score"] = score
        positives = len(row.positives)
        return {"positive_passages": passages[:positives], "negative_passages": passages[positives:]}

    def _summarize(self, written: Sequence[Candidates]) -> dict[str, Any]:
        size = self.options.num_negatives
        self._counts["rows written"] = len(written)
        self._counts["rows with fewer negatives than asked"] = sum(len(each.passages) < size for each in written)
        self._counts["negatives"] = sum(len(each.passages) for each in written)
        self._counts["negatives above their positive"] = sum(
            int((each.similarities > each.positive_similarities.min()).sum()) for each in written
        )
        return {
            "counts": dict(self._counts),
            "sum_of_positive_similarities": float(sum(each.positive_similarities.mean() for each in written)),
            "sum_of_negative_similarities": float(sum(each.similarities.mean() for each in written)),
            "examples": [self._example(each) for each in written[: self.options.examples]],
        }

    def _example(self, candidates: Candidates) -> dict[str, Any]:
        row = candidates.row
        negatives = list(zip(self._texts(candidates), candidates.similarities, strict=True))
        return {
            "where": f"{row.file}:{row.line}",
            "query": row.query,
            "positive": row.positives[0],
            "similarity": float(candidates.positive_similarities[0]),
            "negatives": [
                {"text": text, "similarity": float(similarity)}
                for text, similarity in negatives[:NEGATIVES_OF_AN_EXAMPLE]
            ],
        }
