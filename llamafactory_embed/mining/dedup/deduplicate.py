"""Copy training data without the rows whose query is one of a test set, and report what was left out and why."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...data.files import HubOptions
from ...data.problems import BadRows
from ...data.retrieval import beir
from ...data.retrieval.entries import Entry
from ...data.retrieval.formats import KNOWN_COLUMNS, NliPair, Record
from ...data.retrieval.reader import is_beir, parse_records, records_of_entry
from ...data.retrieval.rows import Row
from ...data.retrieval.texts import read_texts
from ..data_source import find_source
from .matchers import make_matchers
from .options import DedupOptions


@dataclass(frozen=True)
class TestQuery:
    """A query that must not be trained on, and where it stands."""

    __test__ = False  # no test of pytest's

    text: str
    test_set: str
    where: str


def deduplicate(options: DedupOptions) -> dict[str, Any]:
    """Write `options.output` and its report, and return the report. The data itself is never touched."""
    output = Path(options.output)
    entry = find_source("data", options.data, options.dataset_dir)
    if is_beir(entry):
        raise ValueError(
            f"`data`: {entry.location} is a BEIR folder, whose rows lie in three files; name a file of rows."
        )
    if not entry.on_hub and output.resolve() == Path(entry.location).resolve():
        raise ValueError(f"`output`: {output} is the data itself, which is never overwritten; name another file.")
    if output.exists() and not options.overwrite:
        raise ValueError(f"`output`: {output} exists; name another file, or allow it with `overwrite`.")
    queries = read_test_queries(options)
    matchers = make_matchers(options)
    for query in queries:
        for matcher in matchers.values():
            matcher.add(query.text)

    dropped: list[dict[str, Any]] = []
    bad_rows = BadRows(options.skip_bad_rows, KNOWN_COLUMNS)
    temporary = output.with_suffix(".tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as file:
        for where, text, record in tqdm(_queries(entry, bad_rows), desc="Comparing", unit=" rows"):
            rows += 1
            for method, matcher in matchers.items():
                found = matcher.find(text)
                if found is not None:
                    same = queries[found[0]]
                    dropped.append(
                        {"row": where, "query": text, "test_set": same.test_set, "test_row": same.where}
                        | {"test_query": same.text, "method": method, "nearness": found[1]}
                    )
                    break
            else:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if bad_rows.count and not options.skip_bad_rows:
        os.remove(temporary)
    bad_rows.finish()
    os.replace(temporary, output)
    report = {
        "data": options.data,
        "output": options.output,
        "rows": rows,
        "kept": rows - len(dropped),
        "dropped": len(dropped),
        "dropped_by_test_set": {name: 0 for name in options.against} | Counter(each["test_set"] for each in dropped),
        "dropped_by_method": {name: 0 for name in options.methods} | Counter(each["method"] for each in dropped),
        "test_queries": dict(Counter(query.test_set for query in queries)),
        "settings": {
            name: getattr(options, name)
            for name in ("methods", "simhash_distance", "minhash_similarity", "minhash_pieces", "minhash_window")
        },
        "duplicates": dropped,
    }
    _write_report(report, output.with_suffix(".report.json"))
    return report


def read_test_queries(options: DedupOptions) -> list[TestQuery]:
    """The queries of all test sets."""
    queries = []
    for name in options.against:
        entry = find_source("against", name, options.dataset_dir)
        bad_rows = BadRows(options.skip_bad_rows, KNOWN_COLUMNS)
        if is_beir(entry):
            found = _beir_queries(entry.location)
        else:
            found = ((where, text) for where, text, _ in _queries(entry, bad_rows))
        own = [TestQuery(text, name, where) for where, text in found]
        bad_rows.finish()
        if not own:
            raise ValueError(f"`against`: `{name}` has no queries.")
        queries += own
    return queries


def _beir_queries(folder: str) -> Iterator[tuple[str, str]]:
    """All queries of the collection, whatever split judges them."""
    for file in beir.query_files(folder):
        for query in read_texts(file):
            yield f"{file}:{query.line}", query.text


def _queries(entry: Entry, bad_rows: BadRows) -> Iterator[tuple[str, str, Record]]:
    """Where, query and whole record of every row; of labelled pairs (NLI), the premise is the query."""
    records = records_of_entry(entry, HubOptions(), streaming=True)
    for record, parsed in parse_records(records, entry, bad_rows):
        yield f"{parsed.file}:{parsed.line}", _query(parsed), record


def _query(parsed: Row | NliPair) -> str:
    return parsed.query if isinstance(parsed, Row) else parsed.premise


def _write_report(report: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
