"""A teacher's vectors of the texts of rows: a column, or a `.npy` file with the vectors of every record in turn."""

from __future__ import annotations

import dataclasses
import tokenize
import zipfile
from dataclasses import dataclass

import numpy as np

from ...foreign import BAD_VALUES
from ..problems import BadRowError
from .columns import Record
from .entries import Entry
from .formats import NliPair
from .rows import Row


COLUMN = "teacher_vectors"
# What numpy raises for a file that is not its own: the header is Python's notation, `.npz` files are archives.
UNREADABLE = (OSError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, *BAD_VALUES)


@dataclass(frozen=True)
class TeacherVectors:
    """Where the vectors of a data set lie."""

    entry: Entry
    vectors: np.ndarray | None = None
    """[records, d] of the queries, or [records, T, d] of the query and of the first passages; memory-mapped."""

    @classmethod
    def of(cls, entry: Entry) -> TeacherVectors:
        """Open the file that an entry names."""
        if entry.teacher_vectors is None:
            return cls(entry)
        try:
            vectors = np.asarray(np.load(entry.teacher_vectors, mmap_mode="r", allow_pickle=False))
        except UNREADABLE as error:
            raise ValueError(
                f"Data set `{entry.name}`: `teacher_vectors`: {entry.teacher_vectors} is not a readable "
                f".npy file ({error})."
            ) from error
        if vectors.ndim not in (2, 3) or vectors.dtype.kind != "f":
            raise ValueError(
                f"Data set `{entry.name}`: `teacher_vectors` must hold numbers [records, size] or [records, texts, "
                f"size], and {entry.teacher_vectors} has {vectors.dtype} {list(vectors.shape)}."
            )
        return cls(entry, vectors if vectors.ndim == 3 else vectors[:, None])

    def give(self, parsed: Row | NliPair, record: Record, number: int) -> Row | NliPair:
        """The row of a record with its vectors, if there are any."""
        own = self._of_record(record, number)
        if own is None:
            return parsed
        if isinstance(parsed, NliPair):
            raise BadRowError("`teacher_vectors` belong to rows, and labelled pairs of inference are joined to rows")
        counts = (1, 1 + len(parsed.positives), 1 + len(parsed.positives) + len(parsed.negatives))
        if len(own) not in counts:
            raise BadRowError(
                f"`teacher_vectors` has {len(own)} vectors; a row has them for its query, for it and its positives, "
                f"or for all its texts ({', '.join(map(str, dict.fromkeys(counts)))})"
            )
        return dataclasses.replace(parsed, teacher_vectors=own, record=number)

    def refuse_other_than(self, records: int) -> None:
        """The file must be about these records, whose number is known after the last one."""
        if self.vectors is not None and len(self.vectors) != records:
            raise ValueError(
                f"Data set `{self.entry.name}`: `teacher_vectors` has vectors of {len(self.vectors)} records, and the "
                f"data set has {records}."
            )

    def _of_record(self, record: Record, number: int) -> np.ndarray | None:
        if self.vectors is not None:
            if number >= len(self.vectors):
                raise BadRowError(f"`teacher_vectors` has vectors of {len(self.vectors)} records only")
            vectors: np.ndarray = self.vectors[number]
            return vectors
        value = record.get(COLUMN)
        if value is None:
            return None
        try:
            vectors = np.array(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise BadRowError(f"`{COLUMN}` must be a list of numbers, or a list of such lists") from error
        if vectors.ndim not in (1, 2) or not vectors.size or not np.isfinite(vectors).all():
            raise BadRowError(f"`{COLUMN}` must be a list of numbers, or a list of such lists")
        return vectors if vectors.ndim == 2 else vectors[None]
