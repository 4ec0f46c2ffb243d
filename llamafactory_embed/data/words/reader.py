"""The sentences of a recipe's data sets: entries of `dataset_info.json` with `"formatting": "words"`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files import explain_damage, number_rows, read_records
from ..problems import BadRowError, BadRows
from ..registry import HubOptions, check_entry_values, load_from_hub, registered_entries
from .formats import (
    COLUMN_FILES,
    CONLL_U_FILES,
    LocatedSentence,
    Sentence,
    WordColumns,
    label_columns,
    parse_sentence,
    read_columns,
    read_conll_u,
)


FORMATTING = "words"


@dataclass(frozen=True)
class WordData:
    """The sentences of all data sets, and their labels."""

    sentences: list[Sentence]
    labels: list[str]
    """Every label of the data sets, sorted, so that every process numbers them alike; also rare ones that occur only
    after `max_samples` sentences and would be unknown in an evaluation."""


def load_sentences(
    dataset_names: Sequence[str] | str,
    dataset_dir: str,
    labels: str | None,
    *,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
    hub: HubOptions | None = None,
) -> WordData:
    """The sentences in the order of the data sets, at most `max_samples` of each. `labels` names the column; None
    reads words alone."""
    bad_rows = BadRows(skip_bad_rows)
    sentences: list[Sentence] = []
    all_labels: set[str] = set()
    for name, settings in registered_entries(dataset_names, dataset_dir, FORMATTING):
        if settings.get("formatting") != FORMATTING:
            raise ValueError(
                f"Data set `{name}` has `formatting: {settings.get('formatting', 'alpaca')}`; `stage: word-task` "
                f"reads `{FORMATTING}` (docs/word-task.md)."
            )
        of_entry: list[Sentence] = []
        for each in _read_entry(name, settings, dataset_dir, labels, hub or HubOptions()):
            if not isinstance(each, Sentence):
                bad_rows.add(each[0], each[1], str(each[2]))
                if bad_rows.full:
                    break
                continue
            all_labels.update(each.labels)
            if max_samples is None or len(of_entry) < max_samples:
                of_entry.append(each)
        if not of_entry and not bad_rows.count:
            raise ValueError(f"`dataset`: `{name}` has no sentences.")
        sentences += of_entry
    bad_rows.finish()
    return WordData(sentences, sorted(all_labels))


def _read_entry(
    name: str, settings: Mapping[str, Any], dataset_dir: str, labels: str | None, hub: HubOptions
) -> Iterator[LocatedSentence]:
    check_entry_values(settings, f"Data set `{name}`")
    column_names = settings.get("column_names")
    if not isinstance(column_names, list | None) or not all(isinstance(each, str) for each in column_names or ()):
        raise ValueError(f"Data set `{name}`: `column_names` must be a list of texts, not {column_names!r}.")
    columns = WordColumns(labels, None if column_names is None else tuple(column_names), settings.get("columns"))
    if "hf_hub_url" in settings:
        yield from _read_hub(name, settings, columns, hub)
        return
    if "file_name" not in settings:
        raise ValueError(f"Data set `{name}` needs `file_name` or `hf_hub_url`.")
    shown_as = os.path.normpath(os.path.join(dataset_dir, settings["file_name"]))
    extension = os.path.splitext(shown_as.removesuffix(".gz"))[1].lower()
    if extension in (*COLUMN_FILES, *CONLL_U_FILES) and not os.path.isfile(shown_as):
        raise ValueError(f"`file_name`: there is no file `{shown_as}`.")
    if extension in CONLL_U_FILES:
        yield from explain_damage(read_conll_u(shown_as, shown_as, columns), shown_as)
    elif extension in COLUMN_FILES:
        yield from explain_damage(read_columns(shown_as, shown_as, columns), shown_as)
    else:
        for file, line, record in read_records(shown_as):
            yield _parse(record, columns, None, file, line)


def _read_hub(
    name: str, settings: Mapping[str, Any], columns: WordColumns, hub: HubOptions
) -> Iterator[LocatedSentence]:
    """A data set of the hub; its numbered labels get their names from its features."""
    location, split = settings["hf_hub_url"], settings.get("split") or "train"
    rows = load_from_hub(name, location, hub, subset=settings.get("subset"), split=split)
    names = None
    if columns.labels is not None:
        for candidate in (columns.of(columns.labels), *label_columns(columns.labels)):
            feature = rows.features.get(candidate)
            if feature is not None:
                names = getattr(getattr(feature, "feature", None), "names", None)  # ClassLabel has names
                break
    for file, line, record in number_rows(rows, f"{location}[{split}]"):
        yield _parse(record, columns, names, file, line)


def _parse(
    record: dict[str, Any] | BadRowError, columns: WordColumns, names: Sequence[str] | None, file: str, line: int
) -> LocatedSentence:
    try:
        if isinstance(record, BadRowError):
            raise record
        return parse_sentence(record, columns, names, file, line)
    except BadRowError as problem:
        return file, line, problem


def refuse_unseen_labels(sentences: Iterable[Sentence], labels: Sequence[str]) -> None:
    """A label that was never trained cannot be predicted: it is of other data, or a typing error."""
    trained = set(labels)
    for sentence in sentences:
        for position, label in enumerate(sentence.labels):
            if label not in trained:
                raise ValueError(
                    f"{sentence.file}:{sentence.line}: the label `{label}` of the word `{sentence.words[position]}` "
                    f"does not occur in the training data, which have {', '.join(labels)}; if it is right, "
                    "`unseen_labels: count_as_wrong` evaluates nevertheless."
                )
