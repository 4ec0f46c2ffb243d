"""From what queries found to rows with hard negatives, and the figures of the summary."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .embedders import CrossEncoderScores
from .hard_negatives import below_margins, below_near_duplicates, candidates_in_window, sample
from .material import Material, MiningRow
from .options import MiningOptions
from .vectors import ChunkedVectors


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
    texts: list[str] = field(default_factory=list)
    """[n], where the cross-encoder asked for them"""
    scores: np.ndarray | None = None
    """[p + n], the cross-encoder's"""

    def keep(self, places: Any) -> None:
        """Leave only these places, a mask or a list."""
        self.passages = self.passages[places]
        self.similarities = self.similarities[places]
        if self.scores is not None:
            positives = len(self.positive_similarities)
            self.scores = np.concatenate([self.scores[:positives], self.scores[positives:][places]])


class Selector:
    """Chooses the negatives of some rows at a time."""

    def __init__(
        self, options: MiningOptions, material: Material, vectors: ChunkedVectors, judge: CrossEncoderScores | None
    ) -> None:
        self.options = options
        self.material = material
        self.vectors = vectors
        self.judge = judge
        self._counts: Counter[str] = Counter()

    def select(
        self, rows: Sequence[MiningRow], found: np.ndarray, queries: np.ndarray, first_number: int
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Output records of these rows, whose queries [Q, d] found [Q, k] passages, and figures about them."""
        self._counts = Counter(rows=len(rows))
        each = [
            self._candidates(row, first_number + place, found[place], queries[place]) for place, row in enumerate(rows)
        ]
        if self.options.has_margin:
            if self.judge is not None:
                self._score(each)
            for candidates in each:
                self._apply_margins(candidates)
        for candidates in each:
            rng = random.Random(f"{self.options.seed}/{candidates.number}")
            wanted = self.options.num_negatives
            candidates.keep(sample(len(candidates.passages), wanted, self.options.sampling, rng))
        if self.judge is not None and not self.options.has_margin:
            self._score(each)
        written = [candidates for candidates in each if len(candidates.passages)]
        return [self._record(candidates) for candidates in written], self._summarize(written)

    def _candidates(self, row: MiningRow, number: int, found: np.ndarray, query: np.ndarray) -> Candidates:
        first, last = self.options.window
        known = self.material.known_answers(row)
        places = candidates_in_window(found["passage"], first, last, known)
        self._counts["known answers"] += int(np.isin(found["passage"][first:last], list(known)).sum())
        positives = self.vectors.gather(self.material.positions_of_positives(row))  # [p, d]
        candidates = Candidates(
            row, number, found["passage"][places], found["score"][places], positive_similarities=positives @ query
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

    def _score(self, each: Sequence[Candidates]) -> None:
        """The cross-encoder's scores of all rows at once, so that its batches are full."""
        assert self.judge is not None
        texts = [[*one.row.positives, *self._texts(one)] for one in each]
        scores = self.judge.score(
            [(one.row.query, text) for one, own in zip(each, texts, strict=True) for text in own]
        )
        ends = np.cumsum([len(own) for own in texts])
        for one, own in zip(each, np.split(scores, ends[:-1]), strict=True):
            one.scores = own

    def _texts(self, candidates: Candidates) -> list[str]:
        return [self.material.passages[int(number)][1] for number in candidates.passages]

    def _record(self, candidates: Candidates) -> dict[str, Any]:
        row, negatives = candidates.row, self._texts(candidates)
        scores = None if candidates.scores is None else [round(float(score), 6) for score in candidates.scores]
        record: dict[str, Any] = {"query": row.query}
        if self.options.format == "retrieval":
            record["positive"] = row.positives[0] if len(row.positives) == 1 else row.positives
            record["negative"] = negatives
            if scores is not None:
                record["score"] = scores
        else:
            ids = row.positive_ids or list(map(self._id, self.material.positions_of_positives(row)))
            ids = [*ids, *(self._id(int(number)) for number in candidates.passages)]
            passages = [
                {"docid": key, "text": text} | ({} if scores is None else {"ce_score": scores[place]})
                for place, (key, text) in enumerate(zip(ids, [*row.positives, *negatives], strict=True))
            ]
            record["positive_passages"] = passages[: len(row.positives)]
            record["negative_passages"] = passages[len(row.positives) :]
        if row.instruction is not None:
            record["instruction"] = row.instruction
        return record

    def _id(self, number: int) -> str:
        return self.material.passages[number][0] or str(number)

    def _summarize(self, written: Sequence[Candidates]) -> dict[str, Any]:
        wanted = self.options.num_negatives
        self._counts["rows written"] = len(written)
        self._counts["rows with fewer negatives than asked"] = sum(len(one.passages) < wanted for one in written)
        self._counts["negatives"] = sum(len(one.passages) for one in written)
        self._counts["negatives above their positive"] = sum(
            int((one.similarities > one.positive_similarities.min()).sum()) for one in written
        )
        return {
            "counts": dict(self._counts),
            "sum_of_positive_similarities": float(sum(one.positive_similarities.mean() for one in written)),
            "sum_of_negative_similarities": float(sum(one.similarities.mean() for one in written)),
            "examples": [
                {
                    "where": f"{one.row.file}:{one.row.line}",
                    "query": one.row.query,
                    "positive": one.row.positives[0],
                    "similarity": float(one.positive_similarities[0]),
                    "negatives": [
                        {"text": text, "similarity": float(similarity)}
                        for text, similarity in list(zip(self._texts(one), one.similarities, strict=True))[:3]
                    ],
                }
                for one in written[: self.options.examples]
            ],
        }
