"""Texts with ids: corpora and queries that judgements or rows refer to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..files import (
    DAMAGED_ARCHIVE,
    LocatedRecord,
    explain_damage,
    number_rows,
    numbered_rows,
    open_text,
    read_records,
)
from ..problems import BadRowError, BadRows, check_characters
from ..registry import HubOptions
from .entries import TextSource, load_hub_rows


# Names of the columns in public corpora and query files; the first that a record has is used.
ID_COLUMNS = ("_id", "id", "docid", "query_id")
TEXT_COLUMNS = ("text", "content", "question", "query")


LONGEST_HEADER = 2**16  # characters of the names of columns


class TextWithId(NamedTuple):
    """A passage or a query; title and text are joined with one space."""

    key: str
    text: str
    line: int


def read_texts(path: str, bad_rows: BadRows | None = None) -> Iterator[TextWithId]:
    """The texts of a file or folder; bad lines go to `bad_rows`, or are raised in the end if it is None."""
    problems = bad_rows or BadRows(can_skip=False)
    yield from parse_texts(_records(path), {}, problems)
    if bad_rows is None:
        problems.finish()


def read_source(source: TextSource, bad_rows: BadRows, hub: HubOptions) -> dict[str, str]:
    """All texts of a corpus or query file by their ids; of an id that stands twice, the last text counts."""
    if not source.on_hub and not os.path.exists(source.location):
        raise ValueError(f"Data set `{source.name}`: there is no file or folder `{source.location}`.")
    texts = parse_texts(_records_of_source(source, hub), source.columns, bad_rows)
    return {text.key: text.text for text in texts}


def parse_texts(
    records: Iterable[LocatedRecord], columns: Mapping[str, str], bad_rows: BadRows
) -> Iterator[TextWithId]:
    """The text of each record; `columns` names the columns of `id`, `text` and `title` where they are not recognised.
    Bad records are noted."""
    for file, line, record in records:
        try:
            yield TextWithId(*_parse_text(record, columns), line)
        except BadRowError as problem:
            bad_rows.add(file, line, str(problem))
            if bad_rows.full:
                return


def _records_of_source(source: TextSource, hub: HubOptions) -> Iterator[LocatedRecord]:
    """On the hub, the records of all splits unless one is named."""
    if not source.on_hub:
        yield from _records(source.location, has_header=bool(source.columns))
        return
    loaded = load_hub_rows(source, hub)
    splits = loaded if isinstance(loaded, Mapping) else {source.split: loaded}
    for split, records in splits.items():
        yield from number_rows(records, f"{source.location}[{split}]")


def _records(path: str, has_header: bool = False) -> Iterator[LocatedRecord]:
    if has_header or not _is_headerless(path):
        return read_records(path)
    return explain_damage(_read_headerless(path), path)


def _is_headerless(path: str) -> bool:
    """Whether a table begins with a text instead of the names of its columns, as MIRACL's topics and MS MARCO's
    collections do."""
    if not path.removesuffix(".gz").endswith(".tsv") or not os.path.isfile(path):
        return False
    try:
        with open_text(path) as file:
            names = file.readline(LONGEST_HEADER).rstrip("\r\n").split("\t")
    except (UnicodeDecodeError, *DAMAGED_ARCHIVE):
        return False  # whoever reads it says so
    return not (set(names) & set(ID_COLUMNS) and set(names) & set(TEXT_COLUMNS))


def _read_headerless(path: str) -> Iterator[LocatedRecord]:
    """`id<TAB>text` on each line; a quotation mark is a character like others."""
    with open_text(path) as file:
        for line, content in numbered_rows(file, path):
            key, tab, text = content.rstrip("\r\n").partition("\t")
            if not content.strip():
                continue
            problem = BadRowError("every line is an id, a tab and a text")
            yield path, line, {"id": key, "text": text} if tab and text.strip() else problem


def _parse_text(record: dict[str, Any] | BadRowError, columns: Mapping[str, str]) -> tuple[str, str]:
    if isinstance(record, BadRowError):
        raise record
    key = _value(record, columns.get("id"), ID_COLUMNS)
    text = _value(record, columns.get("text"), TEXT_COLUMNS)
    title = record.get(columns.get("title", "title"))
    if key is None or not isinstance(text, str) or not isinstance(title, str | None):
        names = f"`{columns.get('id', '_id')}` and `{columns.get('text', 'text')}`"
        raise BadRowError(f"every line is a JSON object with {names}, and perhaps a `title`")
    return check_characters(str(key), "_id"), check_characters(f"{title or ''} {text}".strip(), "text")


def _value(record: Mapping[str, Any], column: str | None, names: tuple[str, ...]) -> Any:
    if column is None:
        column = next((name for name in names if record.get(name) is not None), "")
    return record.get(column)
