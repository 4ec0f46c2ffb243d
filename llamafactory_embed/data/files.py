"""Local files of data, whose records are read with their lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from .problems import BadRowError


# A record, or what is wrong with its line, with the file and the line (in binary files: the row) it comes from.
LocatedRecord = tuple[str, int, dict[str, Any] | BadRowError]

Read = TypeVar("Read")

# The columns of a row that is an array of texts, as in sentence-transformers' collections of training data.
ARRAY_COLUMNS = ("query", "positive", "negative")

DAMAGED_ARCHIVE = (EOFError, zlib.error, gzip.BadGzipFile)
# Characters of a row: of one line, or of the lines of one row of a table. What is packed may unpack to any length.
LONGEST_ROW = 100_000_000
# Characters of a `.json` array, which is read as a whole.
LARGEST_ARRAY = 2_000_000_000
# Cells of a table may be whole documents; the csv module refuses more than 128 kB unless told.
csv.field_size_limit(LONGEST_ROW)


def number_rows(records: Iterable[dict[str, Any]], shown_as: str) -> Iterator[LocatedRecord]:
    """Records of a `datasets` object with their row numbers."""
    for row, record in enumerate(records, start=1):
        yield shown_as, row, record


def read_records(path: str, shown_as: str | None = None) -> Iterator[LocatedRecord]:
    """All records of a file, or of the data files in a folder in the order of their names."""
    shown_as = shown_as or path
    if os.path.isdir(path):
        if is_saved_dataset(path):
            yield from _explain_table(_read_saved_dataset(path, shown_as), shown_as)
            return
        names = data_files(path)
        if not names:
            raise ValueError(f"`{shown_as}` has no data file; known types are {', '.join(READERS)}.")
        for name in names:
            yield from read_records(os.path.join(path, name), os.path.join(shown_as, name))
        return
    if not os.path.isfile(path):
        raise ValueError(f"`file_name`: there is no file `{shown_as}`.")
    yield from explain_damage(READERS[file_type(path)](path, shown_as), shown_as)


def explain_damage(records: Iterable[Read], shown_as: str) -> Iterator[Read]:
    """Pass records on, and name their file if its bytes are not what they should be."""
    count = 0
    try:
        for record in records:
            yield record
            count += 1
    except UnicodeDecodeError as error:
        raise ValueError(f"`{shown_as}` is not UTF-8 text after its row {count}; convert it.") from error
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"`{shown_as}` is damaged after its row {count} ({error}); fetch it again.") from error


def file_type(path: str) -> str:
    """The extension that determines how a file is read."""
    stem = path[: -len(".gz")] if path.endswith(".gz") else path
    extension = os.path.splitext(stem)[1].lower()
    if extension not in READERS:
        raise ValueError(f"`{path}` is of no known type; known types are {', '.join(READERS)}.")
    return extension


def data_files(folder: str) -> list[str]:
    """The data files of a folder; others, such as its README, are ignored."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if os.path.splitext(name.removesuffix(".gz"))[1].lower() in READERS]


def is_saved_dataset(folder: str) -> bool:
    """Whether the folder was written by `datasets.Dataset.save_to_disk`."""
    return os.path.isfile(os.path.join(folder, "state.json"))


def open_text(path: str) -> TextIO:
    """Open a UTF-8 file, packed by gzip or not."""
    if path.endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


class RowLines:
    """The lines of a text, of which a row may have several: refuses one that is longer than `LONGEST_ROW` before it is
    read to its end."""

    def __init__(self, file: TextIO, shown_as: str) -> None:
        self._file, self._shown_as = file, shown_as
        self._line = 0
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = self._file.readline(LONGEST_ROW + 1)
        if not text:
            raise StopIteration
        self._line += 1
        self._length += len(text)
        if self._length > LONGEST_ROW:
            raise ValueError(
                f"{self._shown_as}:{self._line}: this row is longer than {LONGEST_ROW:,} characters: cut it, or give "
                "the file one row a line."
            )
        return text

    def end_row(self) -> None:
        """What follows is another row."""
        self._length = 0


def numbered_rows(file: TextIO, shown_as: str) -> Iterator[tuple[int, str]]:
    """Every line with its number, each of them a row."""
    lines = RowLines(file, shown_as)
    for number, text in enumerate(lines, start=1):
        lines.end_row()
        yield number, text


def _read_json_lines(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    with open_text(path) as file:
        yield from json_rows(numbered_rows(file, shown_as), shown_as)


def json_rows(lines: Iterable[tuple[int, str]], shown_as: str) -> Iterator[LocatedRecord]:
    """The record of every line that is not empty."""
    for line, text in lines:
        if text.strip():
            yield shown_as, line, _parse_json(text)


def _parse_json(text: str) -> dict[str, Any] | BadRowError:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return BadRowError(f"this is not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        return BadRowError(f"this JSON cannot be read ({error})")
    return _as_record(value)


def _as_record(value: object) -> dict[str, Any] | BadRowError:
    """A JSON object, or an array of two or three texts, whose columns get their names: a pair or a triplet."""
    if isinstance(value, dict):
        return value
    if (
        isinstance(value, list)
        and 2 <= len(value) <= len(ARRAY_COLUMNS)
        and all(isinstance(text, str) for text in value)
    ):
        return dict(zip(ARRAY_COLUMNS, value, strict=False))
    return BadRowError("this is neither a JSON object with columns nor an array of two or three texts")


def _read_json(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    """A JSON array of objects; a `.json` file that holds JSON lines is read as such."""
    with open_text(path) as file:
        text = file.read(LARGEST_ARRAY + 1)
    if len(text) > LARGEST_ARRAY:
        raise ValueError(
            f"`{shown_as}` is longer than {LARGEST_ARRAY:,} characters: write it as JSON lines (.jsonl), which are "
            "read row by row."
        )
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        yield from _read_json_lines(path, shown_as)
        return
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
            position = _skip_space(text, position)
            if text.startswith(",", position):
                position = _skip_space(text, position + 1)
            elif not text.startswith("]", position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except json.JSONDecodeError as error:
            # Where an array is broken, no later element can be told apart.
            yield shown_as, error.lineno, BadRowError(f"this is not JSON ({error.msg}); the rest is not read")
            return
        except (ValueError, RecursionError) as error:
            yield shown_as, line, BadRowError(f"this JSON cannot be read ({error}); the rest is not read")
            return
        yield shown_as, line, _as_record(value)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_table(path: str, shown_as: str, delimiter: str) -> Iterator[LocatedRecord]:
    with open_text(path) as file:
        lines = RowLines(file, shown_as)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(rows, [])
            lines.end_row()
            line = rows.line_num + 1
            for cells in rows:
                lines.end_row()
                if cells and len(cells) != len(header):
                    problem = BadRowError(f"this row has {len(cells)} cells, the header has {len(header)}")
                    yield shown_as, line, problem
                elif cells:
                    yield shown_as, line, dict(zip(header, cells, strict=True))
                line = rows.line_num + 1
        except csv.Error as error:
            yield shown_as, line, BadRowError(f"this is not a table ({error}); the rest is not read")


def _read_text(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    """One text a line; empty lines separate and are no rows."""
    with open_text(path) as file:
        for line, text in numbered_rows(file, shown_as):
            if text.strip():
                yield shown_as, line, {"text": text.strip()}


def _explain_table(records: Iterator[LocatedRecord], shown_as: str) -> Iterator[LocatedRecord]:
    """Pass records of a binary file on, and name the file if it is damaged."""
    import pyarrow

    try:
        yield from records
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`{shown_as}` is damaged ({reason}); fetch it again.") from error


def _read_parquet(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    import pyarrow.parquet

    row = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        for record in batch.to_pylist():
            row += 1
            yield shown_as, row, record


def _read_arrow(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    import datasets

    rows = datasets.Dataset.from_file(path)
    rows.data.validate(full=True)  # lengths and places that the file tells are not checked while it is read
    yield from number_rows(rows, shown_as)


def _read_saved_dataset(path: str, shown_as: str) -> Iterator[LocatedRecord]:
    import datasets

    yield from number_rows(datasets.load_from_disk(path), shown_as)


READERS: dict[str, Callable[[str, str], Iterator[LocatedRecord]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": lambda path, shown_as: _read_table(path, shown_as, ","),
    ".tsv": lambda path, shown_as: _read_table(path, shown_as, "\t"),
    ".txt": _read_text,
    ".parquet": lambda path, shown_as: _explain_table(_read_parquet(path, shown_as), shown_as),
    ".arrow": lambda path, shown_as: _explain_table(_read_arrow(path, shown_as), shown_as),
}
