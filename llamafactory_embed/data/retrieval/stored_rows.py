"""The rows of a task as a sequence over tables: joined, sampled and divided without touching a row."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .row_table import RowTable
from .rows import Row


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a table, in some order; a row may stand in it twice."""

    table: RowTable
    numbers: np.ndarray | None = None
    """[rows] of rows of the table; None: all in their order."""
    instruction: str | None = None
    """Of rows that have none of their own, where it is not the task's."""

    def __len__(self) -> int:
        return len(self.table) if self.numbers is None else len(self.numbers)

    def numbers_at(self, places: np.ndarray) -> np.ndarray:
        """Rows of the table by their places in this piece."""
        return places if self.numbers is None else self.numbers[places]

    def row(self, place: int) -> Row:
        """The row at a place."""
        row: Row = self.table[place if self.numbers is None else int(self.numbers[place])]
        if self.instruction is None or row.instruction is not None:
            return row
        return dataclasses.replace(row, instruction=self.instruction)


class StoredRows(Sequence[Row]):
    """Pieces of tables, one after another."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self._place_of_piece = [0, *itertools.accumulate(map(len, self.pieces))]
        self._starts = np.array(self._place_of_piece)
        self._first_of_table = np.array([0, *itertools.accumulate(len(piece.table) for piece in self.pieces)])

    @classmethod
    def of(cls, rows: Sequence[Row]) -> StoredRows:
        """These rows, in a table in memory unless they lie in tables already."""
        return rows if isinstance(rows, StoredRows) else cls([Piece(RowTable.of_rows(rows))])

    def __len__(self) -> int:
        return self._place_of_piece[-1]

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            places = range(*place.indices(len(self)))
            chosen = self.select(np.array(places, np.int64))
            return chosen if places.step > 0 else StoredRows(chosen.pieces[::-1])
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(f"Row {place} of {len(self)}.")
        piece = bisect.bisect_right(self._place_of_piece, place) - 1
        return self.pieces[piece].row(place - self._place_of_piece[piece])

    def __iter__(self) -> Iterator[Row]:
        for piece in self.pieces:
            yield from map(piece.row, range(len(piece)))

    def select(self, places: np.ndarray) -> StoredRows:
        """The rows at these places, piece after piece: in the order of the places where these ascend."""
        chosen = []
        for piece, start, end in zip(self.pieces, self._starts[:-1], self._starts[1:], strict=True):
            own = places[(places >= start) & (places < end)] - start
            chosen.append(dataclasses.replace(piece, numbers=piece.numbers_at(own)))
        return StoredRows(chosen)

    def have_negatives(self) -> np.ndarray:
        """Of every row [rows] bool."""
        found = []
        for piece in self.pieces:
            of_table = piece.table.have_negatives()
            found.append(of_table if piece.numbers is None else of_table[piece.numbers])
        return np.concatenate(found) if found else np.zeros(0, bool)

    @property
    def tables(self) -> list[RowTable]:
        """The tables of all pieces, one after another: one may stand there twice."""
        return [piece.table for piece in self.pieces]

    @property
    def repeats(self) -> bool:
        """Whether a row may stand at several places."""
        sampled = [piece.numbers for piece in self.pieces if piece.numbers is not None]
        return any(len(np.unique(numbers)) < len(numbers) for numbers in sampled)

    def numbers_in_tables(self, places: np.ndarray) -> np.ndarray:
        """Where the rows at these places stand among all rows of `tables`, numbered through."""
        pieces = np.searchsorted(self._starts, places, side="right") - 1
        numbers = np.empty_like(places)
        for index in np.unique(pieces):
            mine = pieces == index
            inside = self.pieces[index].numbers_at(places[mine] - self._starts[index])
            numbers[mine] = inside + self._first_of_table[index]
        return numbers

    def table_and_number(self, place: int) -> tuple[RowTable, int]:
        """The table of a row, and its number there."""
        index = bisect.bisect_right(self._place_of_piece, place) - 1
        piece = self.pieces[index]
        place -= self._place_of_piece[index]
        return piece.table, place if piece.numbers is None else int(piece.numbers[place])
