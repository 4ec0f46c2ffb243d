"""Texts with ids as mteb reads them: `Dataset`s whose rows lie in a memory-mapped file instead of in memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable

import numpy as np
import pyarrow
from datasets import Dataset, Features, Value

from ...data.retrieval.text_table import TextWriter


COLUMNS = ("id", "text")
ROWS_AT_ONCE = 8192


def map_texts(texts: Iterable[tuple[str, str]]) -> Dataset:
    """Columns `id` and `text` of texts with their ids, which go to a file as they come; of an id that stands twice,
    the last text counts.

    The file has no name any more when it is mapped, so it is gone when nobody reads it, however the program ends.
    """
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    hashes = array("q")
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        writer = TextWriter(file, schema)
        for key, text in texts:
            hashes.append(hash(key))
            writer.add(key, text)
        writer.close()
        file.flush()
        table = pyarrow.ipc.open_file(pyarrow.memory_map(file.name)).read_all()
    rows = _as_dataset(table)
    return _last_of_each_id(rows) if _has_equal(hashes) else rows


def texts_with_ids(rows: Dataset, ids: set[str]) -> dict[str, str]:
    """The texts of some ids, by their ids."""
    found: dict[str, str] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        found |= {key: text for key, text in zip(part["id"], part["text"], strict=True) if key in ids}
    return found


def _as_dataset(table: pyarrow.Table) -> Dataset:
    """The rows as they are; a `Dataset` without a fingerprint would read all of them to make one."""
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.info import DatasetInfo

    info = DatasetInfo(features=Features({name: Value("string") for name in COLUMNS}))
    return Dataset(table, info=info, fingerprint=generate_random_fingerprint())


def _has_equal(hashes: array[int]) -> bool:
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    return bool((ordered[1:] == ordered[:-1]).any())


def _last_of_each_id(rows: Dataset) -> Dataset:
    """Each id once, where it first stands."""
    last: dict[str, int] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        for row, key in enumerate(rows[start : start + ROWS_AT_ONCE]["id"], start):
            last[key] = row
    return rows.select(list(last.values()))
