"""Collections in BEIR's layout (Thakur et al. 2021): `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..files import read_records
from ..problems import BadRowError, BadRows, check_characters


CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
MOST_IDS_SHOWN = 5


class BeirText(NamedTuple):
    """A passage or a query; title and text are joined with one space."""

    key: str
    text: str
    line: int


class JudgedQuery(NamedTuple):
    """A query with at least one relevant passage."""

    key: str
    text: str
    line: int
    grades: Mapping[str, float]
    """Of every passage that was judged, by its id; those above 0 are relevant."""
    relevant: Mapping[str, str]
    """The texts of the relevant passages, by their ids."""


class Collection:
    """A folder with one split's judgements. `passages` is read first, then `queries`; only judged texts are held."""

    def __init__(self, path: str, split: str | None, bad_rows: BadRows, advice: str = "") -> None:
        """Without `split`, the split is `test`, or the only one there is; `advice` is how a user names another."""
        self.path = path
        self.judgements = find_judgements(path, split, advice)
        self.queries_file = os.path.join(path, QUERIES)
        self._bad_rows = bad_rows
        self._bad_before = bad_rows.count
        self._grades: dict[str, dict[str, float]] = {}
        for _, (query, passage, grade) in read_judgements(self.judgements):
            self._grades.setdefault(query, {})[passage] = grade
        judged = (passage for grades in self._grades.values() for passage in grades)
        self._texts: dict[str, str | None] = dict.fromkeys(judged)

    def passages(self) -> Iterator[BeirText]:
        """The whole corpus, in its order."""
        for passage in read_texts(os.path.join(self.path, CORPUS), self._bad_rows):
            if passage.key in self._texts:
                self._texts[passage.key] = passage.text
            yield passage

    def read_passages(self) -> None:
        """Read the corpus for its judged passages alone."""
        deque(self.passages(), maxlen=0)

    def queries(self) -> Iterator[JudgedQuery]:
        """Judged queries in the order of the judgements; those without a relevant passage are left out."""
        texts = {each.key: each for each in read_texts(self.queries_file, self._bad_rows) if each.key in self._grades}
        if self._bad_rows.count == self._bad_before:
            self._refuse_unknown_ids(texts)
        elif not self._bad_rows.skip:
            return  # ids are missing because their lines are bad, which is reported with all bad rows
        for key, grades in self._grades.items():
            relevant = {
                passage: text
                for passage, grade in grades.items()
                if grade > 0 and (text := self._texts[passage]) is not None
            }
            if relevant and key in texts:
                yield JudgedQuery(*texts[key], grades, relevant)

    def where(self, query: str, passage: str) -> str:
        """File and line of a judgement."""
        lines = (line for line, (*ids, _) in read_judgements(self.judgements) if ids == [query, passage])
        return f"{self.judgements}:{next(lines)}"

    def _refuse_unknown_ids(self, queries: Mapping[str, BeirText]) -> None:
        """Name the first judgement of a text that is not there, and how many there are."""
        first = ""
        unknown: dict[str, list[str]] = {QUERIES: [], CORPUS: []}
        if self._grades.keys() <= queries.keys() and None not in self._texts.values():
            return
        for line, (query, passage, _) in read_judgements(self.judgements):
            for where, key, is_there in (
                (QUERIES, query, query in queries),
                (CORPUS, passage, self._texts[passage] is not None),
            ):
                if not is_there:
                    unknown[where].append(key)
                    first = first or f"{self.judgements}:{line}: `{key}` is judged but is not in {where}"
        counts = " and ".join(
            f"{len(keys)} of ids that are not in {file} ({_shown(keys)})" for file, keys in unknown.items() if keys
        )
        raise ValueError(f"{first}; the file has judgements {counts}: add the texts or remove the lines.")


def is_beir_folder(path: str) -> bool:
    """Whether a folder holds a collection in BEIR's layout."""
    return all(os.path.exists(os.path.join(path, name)) for name in (CORPUS, QUERIES, QRELS))


def find_judgements(path: str, split: str | None, advice: str = "") -> str:
    """The file of a split: the one that is named, `test`, or the only one there is."""
    folder = os.path.join(path, QRELS)
    splits = sorted(name.removesuffix(".tsv") for name in os.listdir(folder) if name.endswith(".tsv"))
    if split is None:
        split = "test" if "test" in splits or len(splits) != 1 else splits[0]
    if split not in splits:
        there = ", ".join(splits) or "none"
        raise ValueError(f"`split`: `{path}` has no judgements for `{split}`; it has {there}{advice}.")
    return os.path.join(folder, f"{split}.tsv")


def read_texts(path: str, bad_rows: BadRows | None = None) -> Iterator[BeirText]:
    """The texts of a corpus or of queries; bad lines go to `bad_rows`, or are raised in the end if it is None."""
    problems = bad_rows or BadRows(can_skip=False)
    for file, line, record in read_records(path):
        try:
            yield BeirText(*_parse_text(record), line)
        except BadRowError as problem:
            problems.add(file, line, str(problem))
            if problems.full:
                break
    if bad_rows is None:
        problems.finish()


def _parse_text(record: dict[str, Any] | BadRowError) -> tuple[str, str]:
    if isinstance(record, BadRowError):
        raise record
    title, text = record.get("title"), record.get("text")
    if record.get("_id") is None or not isinstance(text, str) or not isinstance(title, str | None):
        raise BadRowError("every line is a JSON object with `_id` and `text`, and perhaps a `title`")
    return check_characters(str(record["_id"]), "_id"), check_characters(f"{title or ''} {text}".strip(), "text")


def read_judgements(path: str) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """Line, and (query, passage, grade), of every judgement."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows, None)  # the header: query-id, corpus-id, score
        for cells in rows:
            try:
                query, passage, grade = cells
                yield rows.line_num, (query, passage, float(grade))
            except ValueError as error:
                where = f"{path}:{rows.line_num}"
                raise ValueError(f"{where}: a judgement is query-id, corpus-id and a number.") from error


def _shown(keys: Sequence[str]) -> str:
    different = list(dict.fromkeys(keys))
    return ", ".join(different[:MOST_IDS_SHOWN]) + (", …" if len(different) > MOST_IDS_SHOWN else "")
