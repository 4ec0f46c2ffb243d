"""First step of mining: read rows and passages once, and leave them on disk where they can be looked up.

`rows` holds what training will see. `passages` holds every text once: first those that are searched, then the
positives that are not among them, which are only compared with.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import HubOptions, read_records
from ..data.problems import BadRowError, BadRows, check_characters
from ..data.retrieval import beir
from ..data.retrieval.entries import Entry
from ..data.retrieval.formats import KNOWN_COLUMNS, Record, group_nli_pairs
from ..data.retrieval.reader import is_beir, parse_records, records_of_entry
from .records import Records, RecordWriter
from .text_hash import HashTable, id_hash, text_hash


TEXT_COLUMNS = ("text", "passage", "contents", "document", "sentence")
ID_COLUMNS = ("_id", "docid", "doc_id", "passage_id", "id")

Passage = tuple[str, str, int]
"""Id (empty where there is none), text, and line of its file."""


@dataclass(frozen=True)
class MiningRow:
    """A row of the data, as it goes through the work folder."""

    query: str
    positives: list[str]
    positive_ids: list[str]
    """One for each positive, or none where the data gives no ids."""
    negatives: list[str]
    instruction: str | None
    file: str
    line: int


class Material:
    """Rows and passages of a finished first step."""

    def __init__(self, folder: Path) -> None:
        self._rows = Records(folder, "rows")
        self.passages = Records(folder, "passages")  # [id, text] each
        self.by_text = HashTable(folder, "texts")
        self.by_id = HashTable(folder, "ids")
        self.searched: int = json.loads((folder / "counts.json").read_text("utf-8"))["searched"]

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def rows(self, start: int, stop: int) -> list[MiningRow]:
        """Neighbouring rows."""
        return [MiningRow(**record) for record in self._rows[start:stop]]

    def passage_texts(self, start: int, stop: int) -> list[str]:
        """Texts of neighbouring passages."""
        return [text for _, text in self.passages[start:stop]]

    def positions_of_positives(self, row: MiningRow) -> list[int]:
        """The passages that are a row's positives, by text; all of them are there."""
        return [self.by_text.find(text_hash(text)) for text in row.positives]

    def known_answers(self, row: MiningRow) -> set[int]:
        """Passages that cannot be negatives of a row: its positives by text and by id, and its own query."""
        found = {self.by_id.find(id_hash(key)) for key in row.positive_ids}
        found.update(self.positions_of_positives(row))
        found.add(self.by_text.find(text_hash(row.query)))
        return found - {-1}


def read_material(
    entry: Entry, corpus: str | None, folder: Path, *, split: str, max_rows: int | None, skip_bad_rows: bool
) -> None:
    """Read everything and tell of all bad rows, before a model is loaded."""
    if entry.num_samples is not None:
        raise ValueError(
            f"Data set `{entry.name}`: `num_samples` cannot be drawn from rows that are read one by one; use "
            "`max_rows`."
        )
    rows, passages = RecordWriter(folder, "rows"), _PassageWriter(folder)
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    if is_beir(entry):
        collection = beir.Collection(entry.location, split, bad_rows)
        for key, text, _ in _progress(collection.passages(), "Reading passages"):
            if corpus is None and text:
                passages.add(key, text)
        bad_rows.finish()
        _write_rows(_rows_of_collection(collection), rows, max_rows)
        bad_rows.finish()
    else:
        _write_rows(_rows_of_entry(entry, bad_rows), rows, max_rows)
        bad_rows.finish()
    if not len(rows):
        raise ValueError(f"`data`: `{entry.name}` ({entry.location}) has no rows.")
    rows.finish()
    written = Records(folder, "rows")
    if corpus is not None:
        path = beir.corpus_path(corpus) if beir.is_collection(corpus) else corpus
        for key, text, _ in _progress(_passages_of_file(path, bad_rows), "Reading passages"):
            passages.add(key, text)
        bad_rows.finish()
    elif not is_beir(entry):
        for record in written:
            _add_positives(record, passages)
            for text in record["negatives"]:
                passages.add("", text)
    searched = len(passages)
    if not searched:
        raise ValueError(f"`corpus`: `{corpus}` has no passages.")
    for record in written:
        _add_positives(record, passages)
    passages.finish(searched)


def _add_positives(record: dict[str, Any], passages: _PassageWriter) -> None:
    ids = record["positive_ids"] or [""] * len(record["positives"])
    for key, text in zip(ids, record["positives"], strict=True):
        passages.add(key, text)


class _PassageWriter:
    """Passages as they come, of which each text is counted once in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = RecordWriter(folder, "passages")
        self._hashes = array("Q")
        self._id_hashes = array("Q")
        self._with_id = array("q")

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: str, text: str) -> None:
        if key:
            self._id_hashes.append(id_hash(key))
            self._with_id.append(len(self._records))
        self._hashes.append(text_hash(text))
        self._records.add([key, text])

    def finish(self, searched: int) -> None:
        """`searched` of the passages that came are searched, the first ones."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        order = np.sort(first)  # in the order in which texts first came
        number = np.searchsorted(order, first)  # [unique] its number among the passages
        self._records.finish(order)
        HashTable.write(self.folder, "texts", unique, number)
        with_id = np.frombuffer(self._with_id, dtype=np.int64)
        HashTable.write(self.folder, "ids", np.frombuffer(self._id_hashes, dtype=np.uint64), number[inverse[with_id]])
        counts = {"searched": int(np.searchsorted(order, searched))}
        (self.folder / "counts.json").write_text(json.dumps(counts), "utf-8")


def _rows_of_collection(collection: beir.Collection) -> Iterator[MiningRow]:
    for query in collection.queries():
        ids, texts = list(query.relevant), list(query.relevant.values())
        yield MiningRow(query.text, texts, ids, [], None, collection.queries_file, query.line)


def _rows_of_entry(entry: Entry, bad_rows: BadRows) -> Iterator[MiningRow]:
    records = records_of_entry(entry, HubOptions(), streaming=True)
    for record, row in group_nli_pairs(parse_records(records, entry, bad_rows), consecutive_only=True):
        if row.scores is not None and not row.negatives and len(row.positives) == 1:
            raise ValueError(
                f"{row.where}: a scored pair has no right or wrong passage; mine for rows of a query and its positive."
            )
        yield MiningRow(
            query=row.query,
            positives=list(row.positives),
            positive_ids=_positive_ids(record),
            negatives=list(row.negatives),
            instruction=row.instruction,
            file=row.file,
            line=row.line,
        )


def _positive_ids(record: Record | None) -> list[str]:
    """The ids that tDRO's layout gives its positives, if it gives all of them one."""
    passages = None if record is None else record.get("positive_passages")
    if not isinstance(passages, list):
        return []
    ids = [each.get("docid") if isinstance(each, dict) else None for each in passages]
    return [] if None in ids or "" in ids else list(map(str, ids))


def _passages_of_file(path: str, bad_rows: BadRows) -> Iterator[Passage]:
    """Every passage of a file or folder; title and text are joined as in BEIR. Empty ones are passed over."""
    for file, line, record in read_records(path):
        try:
            key, text = _parse_passage(record)
        except BadRowError as problem:
            bad_rows.add(file, line, str(problem))
            if bad_rows.full:
                return
            continue
        if text:
            yield key, text, line


def _parse_passage(record: dict[str, Any] | BadRowError) -> tuple[str, str]:
    if isinstance(record, BadRowError):
        raise record
    column = next((name for name in TEXT_COLUMNS if isinstance(record.get(name), str)), None)
    if column is None:
        raise BadRowError(f"a passage needs a text in one of {', '.join(f'`{name}`' for name in TEXT_COLUMNS)}")
    key = next((str(record[name]) for name in ID_COLUMNS if name in record), "")
    return check_characters(key, "id"), check_characters(
        f"{record.get('title') or ''} {record[column]}".strip(), column
    )


def _write_rows(found: Iterator[MiningRow], rows: RecordWriter, max_rows: int | None) -> None:
    for row in _progress(found, "Reading rows"):
        rows.add(dataclasses.asdict(row))
        if len(rows) == max_rows:
            return


def _progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    return tqdm(items, desc=what, unit="")
