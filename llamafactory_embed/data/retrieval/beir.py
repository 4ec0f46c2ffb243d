"""Collections: passages, queries and judgements in a folder, in the layout of BEIR or of MIRACL.

BEIR (Thakur et al. 2021) has `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`. MIRACL (Zhang et al. 2023) has
`topics/topics.<name>-<split>.tsv` and `qrels/qrels.<name>-<split>.tsv`, both without a header; its corpus, which is
published apart, belongs into `corpus/`.
"""

from __future__ import annotations

import csv
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..files import RowLines, explain_damage, open_text
from ..problems import BadRows
from .texts import TextWithId, read_texts


CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
MIRACL_CORPUS, MIRACL_TOPICS = "corpus", "topics"
MOST_IDS_SHOWN = 5


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
        self.judgements, split = find_judgements(path, split, advice)
        self.corpus_path = corpus_path(path)
        self.queries_file = find_queries(path, split)
        self._bad_rows = bad_rows
        self._bad_before = bad_rows.count
        self._grades: dict[str, dict[str, float]] = {}
        for _, (query, passage, grade) in read_judgements(self.judgements):
            self._grades.setdefault(query, {})[passage] = grade
        judged = (passage for grades in self._grades.values() for passage in grades)
        self._texts: dict[str, str | None] = dict.fromkeys(judged)

    def passages(self) -> Iterator[TextWithId]:
        """The whole corpus, in its order."""
        for passage in read_texts(self.corpus_path, self._bad_rows):
            if passage.key in self._texts:
                self._texts[passage.key] = passage.text
            yield passage

    def read_passages(self) -> None:
        """Read the corpus for its judged passages alone."""
        deque(self.passages(), maxlen=0)

    def queries(self) -> Iterator[JudgedQuery]:
        """Judged queries in the order of the judgements; those without a relevant passage are left out."""
        queries = read_texts(self.queries_file, self._bad_rows)
        texts = {query.key: query for query in queries if query.key in self._grades}
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
                yield JudgedQuery(key, texts[key].text, texts[key].line, grades, relevant)

    def where(self, query: str, passage: str) -> str:
        """File and line of a judgement."""
        lines = (line for line, (*ids, _) in read_judgements(self.judgements) if ids == [query, passage])
        return f"{self.judgements}:{next(lines)}"

    def _refuse_unknown_ids(self, queries: Mapping[str, TextWithId]) -> None:
        """Name the first judgement of a text that is not there, and how many there are."""
        first = ""
        queries_name, corpus_name = os.path.basename(self.queries_file), os.path.basename(self.corpus_path)
        unknown: dict[str, list[str]] = {queries_name: [], corpus_name: []}
        if self._grades.keys() <= queries.keys() and None not in self._texts.values():
            return
        for line, (query, passage, _) in read_judgements(self.judgements):
            for where, key, is_there in (
                (queries_name, query, query in queries),
                (corpus_name, passage, self._texts[passage] is not None),
            ):
                if not is_there:
                    unknown[where].append(key)
                    first = first or f"{self.judgements}:{line}: `{key}` is judged but is not in {where}"
        counts = " and ".join(
            f"{len(keys)} of ids that are not in {file} ({_shown(keys)})" for file, keys in unknown.items() if keys
        )
        raise ValueError(f"{first}; the file has judgements {counts}: add the texts or remove the lines.")


def is_collection(path: str) -> bool:
    """Whether a folder holds a collection in either layout."""
    return any(
        all(os.path.exists(os.path.join(path, name)) for name in names)
        for names in ((CORPUS, QUERIES, QRELS), (MIRACL_CORPUS, MIRACL_TOPICS, QRELS))
    )


def corpus_path(path: str) -> str:
    """The file or folder with the passages of a collection."""
    corpus = os.path.join(path, CORPUS)
    return corpus if os.path.exists(corpus) else os.path.join(path, MIRACL_CORPUS)


def query_files(path: str) -> list[str]:
    """The files with the queries of a collection: one for all splits, or one for each."""
    queries = os.path.join(path, QUERIES)
    if os.path.exists(queries):
        return [queries]
    topics = os.path.join(path, MIRACL_TOPICS)
    return [os.path.join(topics, name) for name in sorted(os.listdir(topics)) if name.endswith(".tsv")]


def find_queries(path: str, split: str) -> str:
    """The file with the queries of a split."""
    files = query_files(path)
    if files == [os.path.join(path, QUERIES)]:
        return files[0]
    for file in files:
        if _split_of(file) == split:
            return file
    there = ", ".join(map(_split_of, files)) or "none"
    raise ValueError(f"`split`: `{path}` has no topics for `{split}`; it has {there}.")


def find_judgements(path: str, split: str | None, advice: str = "") -> tuple[str, str]:
    """The file of a split and the split: the one that is named, `test`, or the only one there is."""
    folder = os.path.join(path, QRELS)
    files = {_split_of(name): name for name in sorted(os.listdir(folder)) if name.endswith(".tsv")}
    if split is None:
        split = "test" if "test" in files or len(files) != 1 else next(iter(files))
    if split not in files:
        there = ", ".join(files) or "none"
        raise ValueError(f"`split`: `{path}` has no judgements for `{split}`; it has {there}{advice}.")
    return os.path.join(folder, files[split]), split


def _split_of(file: str) -> str:
    """`dev` of BEIR's `dev.tsv`, and of MIRACL's `qrels.miracl-v1.0-de-dev.tsv`."""
    name = os.path.basename(file).removesuffix(".tsv")
    miracl = re.fullmatch(r"(?:qrels|topics)\..+-v[\d.]+-[a-z]+-(.+)", name)
    return miracl.group(1) if miracl else name


def read_judgements(path: str) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """Line, and (query, passage, grade), of every judgement: three columns under a header, or TREC's four without."""
    for number, cells in enumerate(explain_damage(_read_cells(path), path), start=1):
        try:
            if len(cells) == 4:
                query, _, passage, grade = cells
            elif number == 1:
                continue  # the header: query-id, corpus-id, score
            else:
                query, passage, grade = cells
            yield number, (query, passage, float(grade))
        except ValueError as error:
            where = f"{path}:{number}"
            raise ValueError(f"{where}: a judgement is query-id, corpus-id and a number.") from error


def _read_cells(path: str) -> Iterator[list[str]]:
    with open_text(path) as file:
        lines = RowLines(file, path)
        try:
            for cells in csv.reader(lines, delimiter="\t"):
                lines.end_row()
                yield cells
        except csv.Error as error:
            raise ValueError(f"`{path}` is not a table of judgements ({error}).") from error


def _shown(keys: Sequence[str]) -> str:
    different = list(dict.fromkeys(keys))
    return ", ".join(different[:MOST_IDS_SHOWN]) + (", …" if len(different) > MOST_IDS_SHOWN else "")
