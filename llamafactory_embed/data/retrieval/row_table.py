"""Rows as an Arrow table: written once, in blocks, and read row by row through a memory map.

What lies in the table costs a process no memory of its own: the pages of the file belong to the machine, and all of
its processes share them. A row becomes Python objects when it is asked for.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Row


# A block is finished at so many rows, or bytes of texts and vectors; a row is never divided.
ROWS_OF_BLOCK = 4096
BYTES_OF_BLOCK = 16 * 2**20


def row_schema() -> Any:
    """The columns of a table of rows. Texts are those of (query, *positives, *negatives)."""
    import pyarrow as pa

    return pa.schema(
        [
            ("texts", pa.list_(pa.large_string())),
            ("text_ids", pa.list_(pa.uint64())),
            ("positives", pa.int32()),
            ("leading_negatives", pa.int32()),
            ("scores", pa.list_(pa.float64())),
            ("instruction", pa.large_string()),
            ("file", pa.int32()),
            ("line", pa.int64()),
            ("record", pa.int64()),
            ("vectors", pa.list_(pa.float32())),
            ("texts_with_vectors", pa.int32()),
        ]
    )


def text_number(text: str) -> int:
    """64 bits that stand for a text: equal texts have equal numbers, on every machine."""
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode("utf-8"))


class RowWriter:
    """Writes rows into an Arrow file. Names of files are kept apart, as they are few: `files` holds them."""

    def __init__(self, sink: Any, with_vectors: bool = True, files: Sequence[str] = ()) -> None:
        """`with_vectors` keeps a teacher's vectors in the table; those of a `.npy` file stay there. `files` are names
        that are known before, in their order."""
        import pyarrow as pa

        self.files = {name: number for number, name in enumerate(files)}
        self._with_vectors = with_vectors
        self._writer = pa.ipc.new_file(sink, row_schema())
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        """Take the next row."""
        self._rows.append(row)
        self._bytes += len(row.query) + sum(map(len, row.positives)) + sum(map(len, row.negatives))
        if self._with_vectors and row.teacher_vectors is not None:
            self._bytes += 4 * row.teacher_vectors.size
        if len(self._rows) >= ROWS_OF_BLOCK or self._bytes >= BYTES_OF_BLOCK:
            self._write_block()

    def close(self) -> None:
        """Finish the file."""
        if self._rows:
            self._write_block()
        self._writer.close()

    def _write_block(self) -> None:
        import pyarrow as pa

        rows, schema = self._rows, row_schema()
        texts = [text for row in rows for text in (row.query, *row.positives, *row.negatives)]
        counts = [1 + len(row.positives) + len(row.negatives) for row in rows]
        offsets = pa.array(np.cumsum([0, *counts], dtype=np.int32))
        vectors = [row.teacher_vectors if self._with_vectors else None for row in rows]
        columns = {
            "texts": pa.ListArray.from_arrays(offsets, pa.array(texts, pa.large_string())),
            "text_ids": pa.ListArray.from_arrays(offsets, pa.array(list(map(text_number, texts)), pa.uint64())),
            "positives": [len(row.positives) for row in rows],
            "leading_negatives": [row.leading_negatives for row in rows],
            "scores": [row.scores for row in rows],
            "instruction": [row.instruction for row in rows],
            "file": [self.files.setdefault(row.file, len(self.files)) for row in rows],
            "line": [row.line for row in rows],
            "record": [row.record for row in rows],
            "vectors": [None if each is None else np.ravel(each).astype(np.float32) for each in vectors],
            "texts_with_vectors": [0 if each is None else len(each) for each in vectors],
        }
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, schema.field(name).type)
            for name, column in columns.items()
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=schema))
        self._rows, self._bytes = [], 0


class _Block:
    """One record batch, as arrays over its memory."""

    def __init__(self, batch: Any) -> None:
        texts = batch.column("texts")
        self.first_text = np.asarray(texts.offsets)
        values = texts.values
        _, ends, characters = values.buffers()
        self.ends = np.frombuffer(ends, np.int64)[values.offset : values.offset + len(values) + 1]
        self.characters = memoryview(characters if characters is not None else b"")
        self.text_ids = batch.column("text_ids").values.to_numpy()
        self.positives = batch.column("positives").to_numpy()
        self.leading_negatives = batch.column("leading_negatives").to_numpy()
        self.file = batch.column("file").to_numpy()
        self.line = batch.column("line").to_numpy()
        self.record = batch.column("record").to_numpy()
        self.scores, self.instruction = (
            _unless_empty(batch.column("scores")),
            _unless_empty(batch.column("instruction")),
        )
        self.vectors, self.texts_with_vectors = batch.column("vectors"), batch.column("texts_with_vectors").to_numpy()

    def texts(self, row: int) -> list[str]:
        """A row's texts."""
        first, last = self.first_text[row : row + 2].tolist()
        ends = self.ends[first : last + 1].tolist()
        return [str(self.characters[start:end], "utf-8") for start, end in itertools.pairwise(ends)]

    def vectors_of(self, row: int) -> np.ndarray | None:
        """A row's vectors [T, d], where the table has them."""
        if not self.texts_with_vectors[row]:
            return None
        vectors: np.ndarray = self.vectors[row].values.to_numpy().reshape(self.texts_with_vectors[row], -1)
        return vectors


def _unless_empty(column: Any) -> Any:
    """A column; None where all of its values are."""
    return None if column.null_count == len(column) else column


class RowTable(Sequence[Row]):
    """The rows of a data set in a table."""

    def __init__(
        self,
        sources: Sequence[Any],
        files: Sequence[str],
        vectors: np.ndarray | None = None,
        kept_as: Path | None = None,
    ) -> None:
        """`sources` are Arrow files, or such in memory, one after another; `vectors` are those of all records, where
        they lie beside them; `kept_as` names a table that lies in the cache."""
        import pyarrow as pa

        readers = map(pa.ipc.open_file, sources)
        self._batches = [reader.get_batch(number) for reader in readers for number in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(len(batch) for batch in self._batches))
        self._blocks: dict[int, _Block] = {}
        self._files = files
        self._vectors = vectors
        self.kept_as = kept_as

    @classmethod
    def of_rows(cls, rows: Iterable[Row], vectors: np.ndarray | None = None) -> RowTable:
        """A table in memory."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        writer = RowWriter(sink, with_vectors=vectors is None)
        for row in rows:
            writer.add(row)
        writer.close()
        return cls([sink.getvalue()], list(writer.files), vectors)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        block, row = self._find(number)
        query, *passages = block.texts(row)
        positives = block.positives.item(row)
        scores = None if block.scores is None else block.scores[row].as_py()
        record = block.record.item(row)
        return Row(
            query,
            tuple(passages[:positives]),
            tuple(passages[positives:]),
            None if scores is None else tuple(scores),
            None if block.instruction is None else block.instruction[row].as_py(),
            block.leading_negatives.item(row),
            self._files[block.file.item(row)],
            block.line.item(row),
            block.vectors_of(row) if self._vectors is None else self._vectors[record],
            record,
        )

    def ids_and_counts(self, number: int) -> tuple[list[int], int, int]:
        """The numbers of a row's texts, (query, *positives, *negatives), and how many positives and leading negatives
        there are."""
        block, row = self._find(number)
        ids: list[int] = block.text_ids[block.first_text.item(row) : block.first_text.item(row + 1)].tolist()
        return ids, block.positives.item(row), block.leading_negatives.item(row)

    def blocks_of_ids(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Block by block: the numbers of all texts [texts], and where each row's begin [rows + 1]."""
        for number in range(len(self._batches)):
            block = self._block(number)
            yield block.text_ids, block.first_text

    def have_negatives(self) -> np.ndarray:
        """Of every row [rows] bool."""
        blocks = [self._block(number) for number in range(len(self._batches))]
        found = [np.diff(block.first_text) > 1 + block.positives for block in blocks]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def _find(self, number: int) -> tuple[_Block, int]:
        place = bisect.bisect_right(self._ends, number)
        if number < 0 or place == len(self._ends):
            raise IndexError(f"Row {number} of {len(self)}.")
        return self._block(place), number - (self._ends[place - 1] if place else 0)

    def _block(self, place: int) -> _Block:
        block = self._blocks.get(place)
        if block is None:
            block = self._blocks[place] = _Block(self._batches[place])
        return block
