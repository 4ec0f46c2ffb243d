"""The texts of a file or of standard input, row by row; what is wrong with them is said before one is embedded."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..data.files import READERS, LocatedRecord, explain_damage, numbered_rows, open_text, read_records
from ..data.problems import BadRowError, BadRows, check_characters
from .tables import ArrowTypes


TEXT_COLUMN = "text"  # of a line of plain text


@dataclass(frozen=True)
class Surveyed:
    """What a first reading of all rows has found."""

    rows: int
    digest: str
    """Of all texts in their order."""
    skipped: int


@dataclass(frozen=True)
class Texts:
    """The usable rows of an input. It is read as often as needed, and never held."""

    path: str
    shown_as: str
    column: str
    skip_bad_rows: bool = False
    ending: str | None = None
    """How the file is read, where its own name does not say it."""

    def __iter__(self) -> Iterator[str]:
        for row in self.rows():
            yield row[self.column]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The usable rows with all their columns."""
        for _, _, row in self._read():
            if not isinstance(row, BadRowError):
                yield row

    def survey(self) -> Surveyed:
        """Read everything once. One ValueError names the bad rows, by file and line."""
        bad = BadRows(self.skip_bad_rows)
        state, rows = hashlib.blake2b(digest_size=16), 0
        for file, line, row in self._read():
            if isinstance(row, BadRowError):
                bad.add(file, line, str(row))
                if bad.full:
                    break
            else:
                content = row[self.column].encode("utf-8")
                state.update(len(content).to_bytes(8, "little") + content)
                rows += 1
        bad.finish()
        if rows == 0:
            raise ValueError(f"`input`: {self.shown_as} has no text to embed.")
        return Surveyed(rows, state.hexdigest(), bad.count)

    def known_types(self) -> ArrowTypes | None:
        """Column → type, of an input that says so itself."""
        if not self.path.lower().endswith(".parquet") or not os.path.isfile(self.path):
            return None
        import pyarrow.parquet

        schema = pyarrow.parquet.read_schema(self.path)
        return dict(zip(schema.names, schema.types, strict=True))

    def _read(self) -> Iterator[LocatedRecord]:
        for file, line, record in self._records():
            try:
                yield file, line, self._checked(record)
            except BadRowError as error:
                yield file, line, error

    def _records(self) -> Iterator[LocatedRecord]:
        ending = self.ending or os.path.splitext(self.path.removesuffix(".gz"))[1].lower()
        if os.path.isdir(self.path) or (self.ending is None and ending != ".txt"):
            return read_records(self.path, self.shown_as)
        if not os.path.isfile(self.path):
            raise ValueError(f"`input`: there is no file {self.shown_as}.")
        read = read_lines if ending == ".txt" else READERS[ending]
        return explain_damage(read(self.path, self.shown_as), self.shown_as)

    def _checked(self, record: dict[str, Any] | BadRowError) -> dict[str, Any]:
        if isinstance(record, BadRowError):
            raise record
        if self.column not in record:
            raise BadRowError(f"there is no column `{self.column}` but {', '.join(map(repr, record))}: set `column`")
        text = record[self.column]
        if not isinstance(text, str):
            raise BadRowError(f"`{self.column}` holds a {type(text).__name__}, not a text")
        if not text.strip():
            raise BadRowError(f"`{self.column}` is empty")
        check_characters(text, self.column)
        return record


def read_lines(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    """Every line is a row, an empty one too: vectors and lines are counted alike."""
    with open_text(path) as file:
        for line, text in numbered_rows(file, shown_as):
            yield shown_as, line, {TEXT_COLUMN: text.rstrip("\r\n")}


@contextmanager
def standard_input(input_format: str) -> Iterator[str]:
    """What comes in, in a temporary file: it can be read twice then, and its length is known."""
    with tempfile.NamedTemporaryFile(prefix="llamafactory-embed-", suffix=f".{input_format}") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name
