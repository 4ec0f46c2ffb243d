"""The rows of a data set, read once: checked and written into the cache, and mapped from there ever after."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_json
from ..problems import BadRows
from ..registry import HubOptions
from .entries import Entry
from .prepared import folder_of_rows, write_folder
from .row_table import RowTable, RowWriter
from .rows import Row
from .shares import write_in_shares
from .teacher_vectors import TeacherVectors
from .text_table import StoredTexts, TextWriter


RECORD, ROWS, CORPUS = "record.json", "rows.arrow", "corpus.arrow"

# Reads a data set, whose bad rows it notes: passages of a collection go to the function, rows are yielded.
ReadDataSet = Callable[[BadRows, Callable[[str], None]], Iterator[Row]]


@dataclass(frozen=True)
class KeptDataSet:
    """The rows of a data set, and the whole corpus of a collection."""

    rows: RowTable
    corpus: StoredTexts


def keep_data_set(entry: Entry, bad_rows: BadRows, hub: HubOptions, read: ReadDataSet) -> KeptDataSet:
    """A data set from the cache, or read and put there. A small one is read into memory.

    Bad rows that were skipped are counted again whenever the rows are used; data with bad rows that are not to be
    skipped are read again, as each of them is to be told.
    """
    place = folder_of_rows(entry, hub)
    if place is None:
        return _read_into_memory(entry, bad_rows, read)
    record = None if hub.renew else _read_record(place)
    if record is None or (record["bad_rows"] and not bad_rows.skip):
        before = bad_rows.count
        record = _write(place, entry, bad_rows, hub.processes, read)
        if bad_rows.count > before:  # they are told when all data sets have been read
            return KeptDataSet(RowTable.of_rows([]), StoredTexts.of([]))
    bad_rows.include(record["bad_rows"], [record["first_bad_row"]] if record["bad_rows"] else [])
    return _open(place, record, entry)


def _read_into_memory(entry: Entry, bad_rows: BadRows, read: ReadDataSet) -> KeptDataSet:
    passages: list[str] = []
    vectors = TeacherVectors.of(entry).vectors
    rows = RowTable.of_rows(read(bad_rows, passages.append), vectors)
    return KeptDataSet(rows, StoredTexts.of(passages))


def _write(place: Path, entry: Entry, bad_rows: BadRows, processes: int, read: ReadDataSet) -> dict[str, Any]:
    """Read and check a data set, and write it unless a bad row forbids it; what is noted of it."""
    import pyarrow as pa

    found = BadRows(skip=True) if bad_rows.skip else bad_rows
    before = bad_rows.count
    with write_folder(place, lambda: bad_rows.count == before) as folder:
        with pa.OSFile(str(folder / CORPUS), "wb") as corpus_file:
            corpus = TextWriter(corpus_file)
            shared = write_in_shares(entry, processes, folder, found)
            tables, files = shared or _write_alone(folder, entry, read(found, corpus.add))
            corpus.close()
        record = {
            "data_set": entry.name,
            "location": entry.location,
            "tables": tables,
            "files": files,
            "bad_rows": found.count if bad_rows.skip else 0,
            "first_bad_row": found.told[0] if found.told else "",
            "version": secrets.token_hex(8),
        }
        write_json(folder / RECORD, record)
    return record


def _write_alone(folder: Path, entry: Entry, rows: Iterator[Row]) -> tuple[list[str], list[str]]:
    """Write rows into one table; its name, and those of the files read."""
    import pyarrow as pa

    with pa.OSFile(str(folder / ROWS), "wb") as file:
        writer = RowWriter(file, with_vectors=entry.teacher_vectors is None)
        for row in rows:
            writer.add(row)
        writer.close()
    return [ROWS], list(writer.files)


def _read_record(place: Path) -> dict[str, Any] | None:
    if not place.is_dir():
        return None
    try:
        content = json.loads((place / RECORD).read_text("utf-8"))
        return {name: content[name] for name in ("tables", "files", "bad_rows", "first_bad_row", "version")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, error) from error


def _open(place: Path, record: dict[str, Any], entry: Entry) -> KeptDataSet:
    import pyarrow as pa

    vectors = TeacherVectors.of(entry).vectors
    try:
        *rows, corpus = (pa.memory_map(str(place / name)) for name in (*record["tables"], CORPUS))
        kept_as = place.with_name(f"{place.name}.{record['version']}")
        return KeptDataSet(RowTable(rows, record["files"], vectors, kept_as), StoredTexts(corpus))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, error: Exception) -> ValueError:
    return ValueError(
        f"The prepared data in {place} are damaged ({error}): remove this folder, or set `overwrite_cache: true`, and "
        "they are prepared again."
    )
