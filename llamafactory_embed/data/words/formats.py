"""Sentences of labelled words from files: columns as in CoNLL-2003, CoNLL-U, and records with lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...hparams.suggestion import suggest
from ..files import RowLines, open_text
from ..problems import BadRowError, check_characters


COLUMN_FILES = (".conll", ".txt", ".bio", ".iob", ".iob2", ".tsv")
CONLL_U_FILES = (".conllu",)

CONLL_2003 = ("word", "pos", "chunk", "ner")
CONLL_U = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
DOCUMENT_START = "-DOCSTART-"

# What public data sets call the lists of their records.
WORD_COLUMNS = ("words", "tokens", "form")
LABEL_COLUMNS = "{}", "{}_tags", "{}_labels"


@dataclass(frozen=True)
class Sentence:
    """Words and their labels, with the file and line they come from."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    """As many as words; empty where there are none and words are only to be labelled."""
    file: str
    line: int


LocatedSentence = Sentence | tuple[str, int, BadRowError]


@dataclass(frozen=True)
class WordColumns:
    """Which column holds the words and which the labels; `labels` is None where none are needed."""

    labels: str | None
    names: tuple[str, ...] | None = None
    """Of files without a header; None: those of CoNLL-2003."""
    roles: Mapping[str, str] | None = None
    """`columns` of the entry: {"words": …, "ner": …}."""

    def of(self, role: str) -> str:
        return (self.roles or {}).get(role, role)


def read_columns(path: str, shown_as: str, columns: WordColumns) -> Iterator[LocatedSentence]:
    """One word a line, its columns separated by tabs or spaces; an empty line ends a sentence."""
    names = columns.names or CONLL_2003
    word = _find_column(names, (columns.of("words"), "word", "words", "token", "form"), shown_as)
    label = None if columns.labels is None else _find_column(names, (columns.of(columns.labels),), shown_as)
    yield from _read_lines(path, shown_as, names, word, label, is_conll_u=False)


def read_conll_u(path: str, shown_as: str, columns: WordColumns) -> Iterator[LocatedSentence]:
    """Universal Dependencies: the syntactic words; ranges (`3-4`) and empty nodes (`5.1`) are none."""
    label = None if columns.labels is None else _find_column(CONLL_U, (columns.of(columns.labels),), shown_as)
    yield from _read_lines(path, shown_as, CONLL_U, CONLL_U.index("form"), label, is_conll_u=True)


def _find_column(columns: Sequence[str], names: Sequence[str], shown_as: str) -> int:
    for name in names:
        if name in columns:
            return columns.index(name)
    raise ValueError(f"`{shown_as}` has no column `{names[0]}`: {_columns_and_hint(names[0], columns)}")


def _columns_and_hint(name: str, columns: Sequence[str]) -> str:
    return f"its columns are {', '.join(columns)}{suggest(name, columns)}"


def _read_lines(
    path: str, shown_as: str, names: Sequence[str], word: int, label: int | None, is_conll_u: bool
) -> Iterator[LocatedSentence]:
    words: list[str] = []
    labels: list[str] = []
    start = 1
    with open_text(path) as file:
        lines = RowLines(file, shown_as)  # a sentence is a row
        for line, text in enumerate(lines, start=1):
            text = text.rstrip("\r\n")
            if not text.strip():
                lines.end_row()
                yield from _finish(words, labels, shown_as, start)
                words, labels = [], []
                continue
            if (is_conll_u and text.startswith("#")) or text.startswith(DOCUMENT_START):
                continue
            cells = text.split("\t") if "\t" in text else text.split()
            if len(cells) != len(names):
                problem = BadRowError(f"this line has {len(cells)} columns, {', '.join(names)} are {len(names)}")
                yield shown_as, line, problem
                continue
            if is_conll_u and not cells[0].isdigit():
                continue
            if not words:
                start = line
            words.append(cells[word])
            if label is not None:
                labels.append(cells[label])
    yield from _finish(words, labels, shown_as, start)


def _finish(words: Sequence[str], labels: Sequence[str], shown_as: str, line: int) -> Iterator[Sentence]:
    if words:
        yield Sentence(tuple(words), tuple(labels), shown_as, line)


def parse_sentence(
    record: Mapping[str, Any], columns: WordColumns, label_names: Sequence[str] | None, file: str, line: int
) -> Sentence:
    """A record with a list of words and a list of labels; numbers are named by `label_names` (of the hub's data)."""
    words = _list_of(record, [columns.of("words"), *WORD_COLUMNS])
    if not words:
        raise BadRowError("the list of words is empty")
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise BadRowError("a word is not text, or is empty")
    for word in words:
        check_characters(word, "words")
    if columns.labels is None:
        return Sentence(tuple(words), (), file, line)
    labels = _list_of(record, [columns.of(columns.labels), *label_columns(columns.labels)])
    if len(labels) != len(words):
        raise BadRowError(f"there are {len(words)} words and {len(labels)} labels")
    return Sentence(tuple(words), tuple(_label(label, label_names) for label in labels), file, line)


def _label(label: object, names: Sequence[str] | None) -> str:
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        raise BadRowError(f"the label {label!r} is neither text nor a number")
    if names is None or isinstance(label, str):
        return check_characters(str(label), "labels")
    if label not in range(len(names)):
        raise BadRowError(f"the label {label!r} is not one of the numbers 0 to {len(names) - 1}")
    return names[int(label)]


def label_columns(task: str) -> list[str]:
    """The names under which records may hold the labels of a task."""
    return [pattern.format(task) for pattern in LABEL_COLUMNS]


def _list_of(record: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    for name in names:
        if name in record:
            value = record[name]
            if not isinstance(value, list):
                raise BadRowError(f"`{name}` must be a list")
            return value
    raise BadRowError(f"there is no column `{names[0]}`: {_columns_and_hint(names[0], list(record)).rstrip('.')}")
