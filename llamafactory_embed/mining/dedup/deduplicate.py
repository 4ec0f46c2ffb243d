"""Copy training data without the rows whose query is one of a test set, and report each row left out and why."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ...data.problems import BadRows
from ...data.registry import HubOptions
from ...data.retrieval import beir
from ...data.retrieval.entries import Entry
from ...data.retrieval.formats import KNOWN_COLUMNS, NliPair, Record
from ...data.retrieval.reader import is_beir, parse_records, records_of_entry
from ...data.retrieval.rows import Row
from ...data.retrieval.texts import read_texts
from ...files import whole_file, write_json
from ..material import Records, RecordWriter
from ..sources import find_rows
from .matchers import Matcher, make_matchers
from .options import REPORTED_SETTINGS, DedupOptions


class QueryOfTestSet(NamedTuple):
    """A query that must not be trained on, and where it stands."""

    text: str
    test_set: str
    where: str


def deduplicate(options: DedupOptions) -> dict[str, Any]:
    """Write `options.output` and its report, and return the report. The data itself is never touched."""
    output = Path(options.output)
    entry = _check(options, output)
    with tempfile.TemporaryDirectory() as folder:
        queries, matchers = _hold_test_queries(options, Path(folder))
        report = _copy_others(options, entry, output, queries, matchers)
    write_json(output.with_suffix(".report.json"), report, indent=1)
    return report


def _hold_test_queries(options: DedupOptions, folder: Path) -> tuple[Records, dict[str, Matcher]]:
    """The test queries on the disk, and what finds their numbers in memory."""
    matchers = make_matchers(options)
    writer = RecordWriter(folder, "queries")
    for query in read_test_queries(options):
        writer.add(query)
        for matcher in matchers.values():
            matcher.add(query.text)
    writer.finish()
    return Records(folder, "queries"), matchers


def _copy_others(
    options: DedupOptions, entry: Entry, output: Path, queries: Records, matchers: Mapping[str, Matcher]
) -> dict[str, Any]:
    """Write the rows that are no duplicates; the report."""
    rows = 0
    duplicates: list[dict[str, Any]] = []
    bad_rows = BadRows(options.skip_bad_rows, KNOWN_COLUMNS)
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as file:
            for where, text, record in tqdm(_queries(entry, bad_rows), desc="Comparing", unit=" rows"):
                rows += 1
                duplicate = _find_duplicate(text, matchers, queries)
                if duplicate is None:
                    file.write(to_json_line(record, where))
                else:
                    duplicates.append({"row": where, "query": text, **duplicate})
        bad_rows.finish()
    return _report(options, queries, duplicates, rows)


def _check(options: DedupOptions, output: Path) -> Entry:
    """The entry of the data, when the options have been checked."""
    entry = find_rows("data", options.data, options.dataset_dir)
    if is_beir(entry):
        raise ValueError(
            f"`data`: {entry.location} is a BEIR folder, whose rows lie in three files; name a file of rows."
        )
    if not entry.on_hub and output.resolve() == Path(entry.location).resolve():
        raise ValueError(f"`output`: {output} is the data itself, which is never overwritten; name another file.")
    if output.exists() and not options.overwrite:
        raise ValueError(f"`output`: {output} exists; name another file, or allow it with `overwrite`.")
    return entry


def _find_duplicate(text: str, matchers: Mapping[str, Matcher], queries: Records) -> dict[str, str] | None:
    """The test query that the first method finds, as the report shows it."""
    for method, matcher in matchers.items():
        match = matcher.find(text)
        if match is not None:
            number, nearness = match
            same = QueryOfTestSet(*queries[number])
            return {
                "test_set": same.test_set,
                "test_row": same.where,
                "test_query": same.text,
                "method": method,
                "nearness": nearness,
            }
    return None


def _report(options: DedupOptions, queries: Records, duplicates: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    return {
        "data": options.data,
        "output": options.output,
        "rows": rows,
        "kept": rows - len(duplicates),
        "dropped": len(duplicates),
        "dropped_by_test_set": dict.fromkeys(options.against, 0) | Counter(each["test_set"] for each in duplicates),
        "dropped_by_method": dict.fromkeys(options.methods, 0) | Counter(each["method"] for each in duplicates),
        "test_queries": dict(Counter(test_set for _, test_set, _ in queries)),
        "settings": {name: getattr(options, name) for name in REPORTED_SETTINGS},
        "duplicates": duplicates,
    }


# ------------------------------------------------ reading -----------------------------------------------------


def read_test_queries(options: DedupOptions) -> Iterator[QueryOfTestSet]:
    """The queries of all test sets."""
    for name in options.against:
        entry = find_rows("against", name, options.dataset_dir)
        bad_rows = BadRows(options.skip_bad_rows, KNOWN_COLUMNS)
        if is_beir(entry):
            texts = _beir_queries(entry.location)
        else:
            texts = ((where, text) for where, text, _ in _queries(entry, bad_rows))
        count = 0
        for where, text in texts:
            yield QueryOfTestSet(text, name, where)
            count += 1
        bad_rows.finish()
        if not count:
            raise ValueError(f"`against`: `{name}` has no queries.")


def _beir_queries(folder: str) -> Iterator[tuple[str, str]]:
    """All queries of the collection, whatever split judges them."""
    for file in beir.query_files(folder):
        for query in read_texts(file):
            yield f"{file}:{query.line}", query.text


def _queries(entry: Entry, bad_rows: BadRows) -> Iterator[tuple[str, str, Record]]:
    """Where, query and whole record of every row; of labelled pairs (NLI), the premise is the query."""
    records = records_of_entry(entry, HubOptions(), streaming=True)
    for record, row in parse_records(records, entry, bad_rows):
        yield f"{row.file}:{row.line}", _query_of(row), record


def _query_of(row: Row | NliPair) -> str:
    return row.query if isinstance(row, Row) else row.premise


# ------------------------------------------------ writing -----------------------------------------------------


def to_json_line(record: Record, where: str) -> str:
    """A record as a line of JSON. Tables hold types that JSON lacks: they become text from which each can be restored.

    Days and times are written as in ISO 8601, decimal numbers with all their digits, bytes in base64.
    """
    try:
        return json.dumps(record, ensure_ascii=False, default=_to_text) + "\n"
    except TypeError:
        column, kind = next(_unknown_values(record))
        raise ValueError(
            f"{where}: column `{column}` holds a value of type {kind}, which JSON cannot; leave the column out of "
            "the data."
        ) from None


def _to_text(value: object) -> str:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, uuid.UUID)):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(type(value).__name__)


def _unknown_values(record: Record) -> Iterator[tuple[str, str]]:
    """Column and type of what `to_json_line` cannot write."""
    for column, value in record.items():
        try:
            json.dumps(value, default=_to_text)
        except TypeError as error:
            yield column, str(error)
