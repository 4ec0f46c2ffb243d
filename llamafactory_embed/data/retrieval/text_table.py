"""Texts as an Arrow table, mapped into memory: the passages of a collection."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


TEXTS_OF_BLOCK = 4096
CHARACTERS_OF_BLOCK = 16 * 2**20


class TextWriter:
    """Writes texts into an Arrow file, in blocks."""

    def __init__(self, sink: Any, schema: Any = None) -> None:
        """`schema` has a column for each of the texts that `add` takes: one, `text`, unless it is given."""
        import pyarrow as pa

        self._schema = schema or pa.schema([("text", pa.large_string())])
        self._writer = pa.ipc.new_file(sink, self._schema)
        self._rows: list[tuple[str, ...]] = []
        self._characters = 0

    def add(self, *texts: str) -> None:
        """Take the next text, or the next of each column."""
        self._rows.append(texts)
        self._characters += sum(map(len, texts))
        if len(self._rows) >= TEXTS_OF_BLOCK or self._characters >= CHARACTERS_OF_BLOCK:
            self._write_block()

    def close(self) -> None:
        """Finish the file."""
        if self._rows:
            self._write_block()
        self._writer.close()

    def _write_block(self) -> None:
        import pyarrow as pa

        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows, self._characters = [], 0


class StoredTexts(Sequence[str]):
    """The texts of one or several tables, one after another."""

    def __init__(self, *sources: Any) -> None:
        """Each is an Arrow file, or one in memory."""
        import pyarrow as pa

        self._sources = sources
        readers = [pa.ipc.open_file(source) for source in sources]
        blocks = [reader.get_batch(number) for reader in readers for number in range(reader.num_record_batches)]
        self._texts = pa.chunked_array([block.column(0) for block in blocks], pa.large_string())

    @classmethod
    def of(cls, texts: Iterable[str]) -> StoredTexts:
        """Texts in memory."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        writer = TextWriter(sink)
        for text in texts:
            writer.add(text)
        writer.close()
        return cls(sink.getvalue())

    @classmethod
    def joined(cls, parts: Iterable[Sequence[str]]) -> StoredTexts:
        """All texts of several, one after another."""
        stored = [part if isinstance(part, StoredTexts) else cls.of(part) for part in parts]
        return cls(*itertools.chain.from_iterable(part._sources for part in stored))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return self._texts[place].as_py()

    def __iter__(self) -> Iterator[str]:
        for block in self._texts.chunks:
            yield from block.to_pylist()
