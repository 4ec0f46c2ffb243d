"""The sentences of a recipe's data sets: entries of `dataset_info.json` with `"formatting": "words"`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..retrieval.files import number_rows, read_records
from ..retrieval.problems import BadRowError, BadRows
from ..retrieval.reader import HubOptions
from .formats import (
    COLUMN_FILES,
    CONLL_U_FILES,
    Located,
    WordColumns,
    label_columns,
    parse_record,
    read_columns,
    read_conll_u,
)
from .sentences import Sentence


FORMATTING = "words"


@dataclass(frozen=True)
class WordData:
    """What was read."""

    sentences: list[Sentence]
    labels: list[str]
    """Every label of the data sets, sorted, so that every process numbers them alike; also those that only sentences
    behind `max_samples` have, which are rare and would be unknown in an evaluation."""


def load_sentences(
    dataset_names: Sequence[str] | str,
    dataset_dir: str,
    labels: str | None,
    *,
    max_samples: int | None = None,
    skip_bad_rows: bool = False,
    hub: HubOptions | None = None,
) -> WordData:
    """The sentences in the order of the data sets, of each at most `max_samples`. `labels` names the column; None
    reads words alone."""
    from llamafactory.data.parser import get_dataset_list  # late: it imports the whole host

    names = dataset_names.split(",") if isinstance(dataset_names, str) else list(dataset_names)
    names = [name.strip() for name in names]
    bad_rows = BadRows(skip_bad_rows)
    sentences: list[Sentence] = []
    all_labels: set[str] = set()
    for name, attributes in zip(names, get_dataset_list(names, dataset_dir), strict=True):
        settings = attributes.entry or {"hf_hub_url": name, "formatting": FORMATTING}
        if settings.get("formatting") != FORMATTING:
            raise ValueError(
                f"Data set `{name}` has `formatting: {settings.get('formatting', 'alpaca')}`; `stage: word-task` "
                f"reads `{FORMATTING}` (docs/word-task.md)."
            )
        found: list[Sentence] = []
        for each in _read_entry(name, settings, dataset_dir, labels, hub or HubOptions()):
            if not isinstance(each, Sentence):
                bad_rows.add(each[0], each[1], str(each[2]))
                if bad_rows.full:
                    break
                continue
            all_labels.update(each.labels)
            if max_samples is None or len(found) < max_samples:
                found.append(each)
        if not found and not bad_rows.count:
            raise ValueError(f"`dataset`: `{name}` has no sentences.")
        sentences += found
    bad_rows.finish()
    return WordData(sentences, sorted(all_labels))


def _read_entry(
    name: str, settings: Mapping[str, Any], dataset_dir: str, labels: str | None, hub: HubOptions
) -> Iterator[Located]:
    column_names = settings.get("column_names")
    columns = WordColumns(labels, None if column_names is None else tuple(column_names), settings.get("columns"))
    if "hf_hub_url" in settings:
        yield from _read_hub(settings, columns, hub)
        return
    if "file_name" not in settings:
        raise ValueError(f"Data set `{name}` needs `file_name` or `hf_hub_url`.")
    shown_as = os.path.normpath(os.path.join(dataset_dir, settings["file_name"]))
    extension = os.path.splitext(shown_as.removesuffix(".gz"))[1].lower()
    if extension in (*COLUMN_FILES, *CONLL_U_FILES) and not os.path.isfile(shown_as):
        raise ValueError(f"`file_name`: there is no file `{shown_as}`.")
    if extension in CONLL_U_FILES:
        yield from read_conll_u(shown_as, shown_as, columns)
    elif extension in COLUMN_FILES:
        yield from read_columns(shown_as, shown_as, columns)
    else:
        for file, line, record in read_records(shown_as):
            yield _parse(record, columns, None, file, line)


def _read_hub(settings: Mapping[str, Any], columns: WordColumns, hub: HubOptions) -> Iterator[Located]:
    """A data set of the hub; its numbered labels get their names from its features."""
    import datasets

    location = settings["hf_hub_url"]
    rows = datasets.load_dataset(
        location,
        settings.get("subset"),
        split=settings.get("split") or "train",
        cache_dir=hub.cache_dir,
        token=hub.token,
    )
    names = None
    if columns.labels is not None:
        for candidate in (columns.of(columns.labels), *label_columns(columns.labels)):
            feature = rows.features.get(candidate)
            if feature is not None:
                names = getattr(getattr(feature, "feature", None), "names", None)  # ClassLabel has names
                break
    for file, line, record in number_rows(rows, location):
        yield _parse(record, columns, names, file, line)


def _parse(
    record: dict[str, Any] | BadRowError, columns: WordColumns, names: Sequence[str] | None, file: str, line: int
) -> Located:
    try:
        if isinstance(record, BadRowError):
            raise record
        return parse_record(record, columns, names, file, line)
    except BadRowError as problem:
        return file, line, problem
