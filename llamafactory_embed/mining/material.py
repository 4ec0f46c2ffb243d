"""First step of mining: read rows and passages once, and leave them on disk where they can be looked up.

`rows` holds what training will see. `passages` holds every text once: first those that are searched, then the
positives that are not among them, which are only compared with. `answers` holds the positives of every query, whatever
row they stand in.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from tqdm.auto import tqdm

from ..data.problems import BadRows
from ..data.retrieval import beir
from ..data.retrieval.entries import Entry
from ..data.retrieval.formats import KNOWN_COLUMNS
from ..data.retrieval.reader import is_beir, task_instruction
from ..files import digest
from .sources import MiningRow, Passage, mining_rows_of_collection, mining_rows_of_records, passages_of_corpus


Item = TypeVar("Item")


# ------------------------------------------------ what is on disk ---------------------------------------------


class RecordWriter:
    """Appends JSON lines; `finish` makes them readable by number."""

    def __init__(self, folder: Path, name: str) -> None:
        self._spans_path = folder / f"{name}.spans.npy"
        self._file = open(folder / f"{name}.jsonl", "wb")  # noqa: SIM115 - closed by `finish`
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, record: object) -> None:
        """Write one record."""
        content = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def finish(self, selected: np.ndarray | None = None) -> None:
        """Close the file; with `selected`, only these records are counted, in that order."""
        self._file.close()
        ends = np.frombuffer(self._ends, dtype=np.int64)
        spans = np.stack([ends[:-1], ends[1:]], axis=1)
        np.save(self._spans_path, spans if selected is None else spans[selected])


class Records(Sequence[Any]):
    """Reads what a `RecordWriter` wrote; only records that are asked for come into memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self._spans = np.asarray(np.load(folder / f"{name}.spans.npy", mmap_mode="r"))  # [n, 2], not in memory
        path = folder / f"{name}.jsonl"
        empty = path.stat().st_size == 0
        self._bytes = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, key: int) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return [self._read(number) for number in range(*key.indices(len(self)))]
        return self._read(key)

    def _read(self, number: int) -> Any:
        start, end = self._spans[number]
        return json.loads(self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass"))


class HashTable:
    """Passages by 64-bit hash: two sorted arrays on disk, opened memory-mapped, 16 bytes an item."""

    def __init__(self, folder: Path, name: str) -> None:
        self._hashes = np.load(folder / f"{name}.hashes.npy", mmap_mode="r")
        self._numbers = np.load(folder / f"{name}.numbers.npy", mmap_mode="r")

    @staticmethod
    def write(folder: Path, name: str, hashes: np.ndarray, numbers: np.ndarray) -> None:
        """Write the arrays; a hash may have several numbers."""
        order = np.argsort(hashes, kind="stable")
        np.save(folder / f"{name}.hashes.npy", hashes[order])
        np.save(folder / f"{name}.numbers.npy", numbers[order])

    def find(self, key: int) -> int:
        """The first number of a hash, -1 where there is none."""
        place = int(np.searchsorted(self._hashes, np.uint64(key)))
        if place < len(self._hashes) and int(self._hashes[place]) == key:
            return int(self._numbers[place])
        return -1

    def find_all(self, key: int) -> list[int]:
        """All numbers of a hash."""
        first, last = (int(np.searchsorted(self._hashes, np.uint64(key), side)) for side in ("left", "right"))
        return self._numbers[first:last].tolist()


def text_hash(text: str) -> int:
    """Equal for texts that differ in nothing but case, white space and ways of encoding a character."""
    return _hash(_folded(text))


def id_hash(key: str) -> int:
    """The hash of an id, which is taken literally."""
    return _hash(key)


def query_hash(row: MiningRow, instruction: str) -> int:
    """Equal for rows that ask the same: as in evaluation, the same text under the same instruction, which is
    `instruction` where the row names none."""
    return _hash(_folded(row.query), "\0", instruction if row.instruction is None else row.instruction)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash(*parts: str) -> int:
    return int.from_bytes(digest(*parts), "big")


# ------------------------------------------------ reading it --------------------------------------------------


class Material:
    """Rows and passages of a finished first step."""

    def __init__(self, folder: Path, instruction: str) -> None:
        """`instruction` is that of the data set, which rows have that name none."""
        self._rows = Records(folder, "rows")
        self._instruction = instruction
        self.passages = Records(folder, "passages")  # [id, text] each
        self._by_text = HashTable(folder, "texts")
        self._by_id = HashTable(folder, "ids")
        self._answers = HashTable(folder, "answers")
        self.searched: int = json.loads((folder / "counts.json").read_text("utf-8"))["searched"]

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def rows(self, start: int, stop: int) -> list[MiningRow]:
        """Neighbouring rows."""
        return [MiningRow(**record) for record in self._rows[start:stop]]

    def passage_texts(self, start: int, stop: int) -> list[str]:
        """Texts of neighbouring passages."""
        return [text for _, text in self.passages[start:stop]]

    def passage_id(self, number: int) -> str:
        """The passage's id. Where the data gives none, its number, with as many `_` before it as make it unique."""
        given: str = self.passages[number][0]
        if given:
            return given
        made = str(number)
        while self._by_id.find(id_hash(made)) >= 0:
            made = f"_{made}"
        return made

    def positions_of_positives(self, row: MiningRow) -> list[int]:
        """The passages that are a row's positives, by text; all of them are there."""
        return [self._by_text.find(text_hash(text)) for text in row.positives]

    def answers_of(self, row: MiningRow) -> set[int]:
        """Passages that cannot be negatives of a row: the positives, by text and by id, of all rows that ask the same,
        and the query itself."""
        answers = set(self._answers.find_all(query_hash(row, self._instruction)))
        answers.add(self._by_text.find(text_hash(row.query)))
        return answers - {-1}


# ------------------------------------------------ writing it --------------------------------------------------


def read_material(
    entry: Entry, corpus: str | None, folder: Path, *, split: str, max_rows: int | None, skip_bad_rows: bool
) -> None:
    """Read everything and report all bad rows, before a model is loaded."""
    if entry.num_samples is not None:
        raise ValueError(
            f"Data set `{entry.name}`: `num_samples` cannot be drawn from rows that are read one by one; use "
            "`max_rows`."
        )
    bad_rows = BadRows(skip_bad_rows, KNOWN_COLUMNS)
    passages = _PassageWriter(folder)
    if is_beir(entry):
        collection = beir.Collection(entry.location, split, bad_rows)
        for passage in _progress(collection.passages(), "Reading passages"):
            if corpus is None and passage.text:
                passages.add(Passage(passage.key, passage.text))
        bad_rows.finish()
        rows = mining_rows_of_collection(collection, entry)
    else:
        rows = mining_rows_of_records(entry, bad_rows)
    written = _write_rows(rows, folder, max_rows)
    bad_rows.finish()
    if not written:
        raise ValueError(f"`data`: `{entry.name}` ({entry.location}) has no rows.")

    if corpus is not None:
        passages.add_corpus(corpus, bad_rows)
    elif not is_beir(entry):
        for row in written:
            passages.add_positives(row)
            for text in row["negatives"]:
                passages.add(Passage("", text))
    searched = len(passages)
    for row in written:
        passages.add_positives(row)
    passages.finish(searched)
    _write_answers(folder, task_instruction(entry))


def _write_rows(rows: Iterator[MiningRow], folder: Path, max_rows: int | None) -> Records:
    writer = RecordWriter(folder, "rows")
    for row in _progress(rows, "Reading rows"):
        writer.add(dataclasses.asdict(row))
        if len(writer) == max_rows:
            break
    writer.finish()
    return Records(folder, "rows")


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

    def add(self, passage: Passage) -> None:
        if passage.id:
            self._id_hashes.append(id_hash(passage.id))
            self._with_id.append(len(self._records))
        self._hashes.append(text_hash(passage.text))
        self._records.add(passage)

    def add_corpus(self, path: str, bad_rows: BadRows) -> None:
        for passage in _progress(passages_of_corpus(path, bad_rows), "Reading passages"):
            self.add(passage)
        bad_rows.finish()
        if not len(self):
            raise ValueError(f"`corpus`: `{path}` has no passages.")

    def add_positives(self, row: dict[str, Any]) -> None:
        """Add the positives of a row's record."""
        ids = row["positive_ids"] or [""] * len(row["positives"])
        for passage in map(Passage, ids, row["positives"]):
            self.add(passage)

    def finish(self, searched: int) -> None:
        """Write the tables; the first `searched` of the passages that came are searched."""
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


def _write_answers(folder: Path, instruction: str) -> None:
    """The positives of every query, so that rows that ask the same know of each other's."""
    by_text, by_id = HashTable(folder, "texts"), HashTable(folder, "ids")
    hashes, numbers = array("Q"), array("q")
    for record in _progress(Records(folder, "rows"), "Joining rows"):
        row = MiningRow(**record)
        answers = {by_text.find(text_hash(text)) for text in row.positives}
        answers.update(number for key in row.positive_ids for number in by_id.find_all(id_hash(key)))
        numbers.extend(sorted(answers))
        hashes.extend([query_hash(row, instruction)] * (len(numbers) - len(hashes)))
    HashTable.write(folder, "answers", np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(numbers, dtype=np.int64))


def _progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    return tqdm(items, desc=what, unit="")
