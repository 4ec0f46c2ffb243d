"""Where rows and passages come from: an entry of `dataset_info.json`, a file, or a folder in BEIR's layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..data.files import data_files, file_type, is_saved_dataset, read_records
from ..data.problems import BadRowError, BadRows, check_characters
from ..data.registry import HubOptions
from ..data.retrieval import beir
from ..data.retrieval.entries import Entry, find_entries, make_entry
from ..data.retrieval.formats import Record, group_nli_pairs
from ..data.retrieval.reader import instruction_in_turn, parse_records, records_of_entry


TEXT_COLUMNS = ("text", "passage", "contents", "document", "sentence")
ID_COLUMNS = ("_id", "docid", "doc_id", "passage_id", "id")


@dataclass(frozen=True, kw_only=True)
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


class Passage(NamedTuple):
    """A text to search; the id is empty where the data gives none."""

    id: str
    text: str


# ------------------------------------------------ what the options name ---------------------------------------


def find_rows(option: str, data: str, dataset_dir: str) -> Entry:
    """The entry that `data` names, or one made for its path."""
    if os.path.exists(data):
        check_readable(option, data)
        name = os.path.splitext(os.path.basename(os.path.normpath(data)))[0]
        return make_entry(name, {"file_name": os.path.abspath(data), "formatting": "retrieval"}, "")
    if not os.path.isfile(os.path.join(dataset_dir, "dataset_info.json")):
        raise ValueError(
            f"`{option}`: there is no file or folder `{data}`, and `dataset_dir: {dataset_dir}` holds no "
            "dataset_info.json that could name it."
        )
    if "," in data:
        raise ValueError(f"`{option}`: {data!r} names several data sets; name one, because each gets its own output.")
    (entry,) = find_entries([data], dataset_dir)
    if not entry.on_hub and not os.path.exists(entry.location):
        raise ValueError(f"`{option}`: there is no file `{entry.location}`, which data set `{data}` names.")
    return entry


def check_readable(option: str, path: str) -> None:
    """Refuse a path that no reader understands."""
    if not os.path.exists(path):
        raise ValueError(f"`{option}`: there is no file or folder `{path}`.")
    if os.path.isfile(path):
        file_type(path)
    elif not beir.is_collection(path) and not is_saved_dataset(path) and not data_files(path):
        raise ValueError(f"`{option}`: the folder `{path}` holds neither data files nor a BEIR collection.")


def file_stamps(path: str | None) -> list[tuple[str, int, int]]:
    """Name, size and modification time of a file or of all files in a folder: they change when the data do."""
    if path is None or not os.path.exists(path):
        return []
    files = [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]


# ------------------------------------------------ rows --------------------------------------------------------


def mining_rows_of_collection(collection: beir.Collection, entry: Entry) -> Iterator[MiningRow]:
    """The judged queries of a BEIR folder, after its passages have been read."""
    for number, query in enumerate(collection.queries()):
        yield MiningRow(
            query=query.text,
            positives=list(query.relevant.values()),
            positive_ids=list(query.relevant),
            negatives=[],
            instruction=instruction_in_turn(entry, number),
            file=collection.queries_file,
            line=query.line,
        )


def mining_rows_of_records(entry: Entry, bad_rows: BadRows) -> Iterator[MiningRow]:
    """The rows of any other data set, none of which is held; labelled pairs are grouped where they are adjacent."""
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


# ------------------------------------------------ passages ----------------------------------------------------


def passages_of_corpus(path: str, bad_rows: BadRows) -> Iterator[Passage]:
    """Every passage of a file or folder; title and text are joined as in BEIR, and empty passages are skipped."""
    file_or_folder = beir.corpus_path(path) if beir.is_collection(path) else path
    for file, line, record in read_records(file_or_folder):
        try:
            passage = _parse_passage(record)
        except BadRowError as problem:
            bad_rows.add(file, line, str(problem))
            if bad_rows.full:
                return
            continue
        if passage.text:
            yield passage


def _parse_passage(record: Record | BadRowError) -> Passage:
    if isinstance(record, BadRowError):
        raise record
    column = next((name for name in TEXT_COLUMNS if isinstance(record.get(name), str)), None)
    if column is None:
        raise BadRowError(f"a passage needs a text in one of {', '.join(f'`{name}`' for name in TEXT_COLUMNS)}")
    text = f"{record.get('title') or ''} {record[column]}".strip()
    return Passage(check_characters(_id_of(record), "id"), check_characters(text, column))


def _id_of(record: Record) -> str:
    """An id of null is no id: in a table, a column is there for all rows or for none."""
    return next((str(record[name]) for name in ID_COLUMNS if record.get(name) is not None), "")
