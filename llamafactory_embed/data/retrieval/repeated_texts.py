"""Which texts stand in more than one row: a plan of batches looks at these alone, and at few rows because of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...files import digest
from .prepared import write_folder
from .row_table import RowTable


# Numbers of texts that are sorted at once.
IDS_AT_ONCE = 2**24
ENDS, IDS = "ends.npy", "ids.npy"


@dataclass(frozen=True)
class RepeatedTexts:
    """For all rows of some tables, numbered through: the numbers of those texts that other rows may have, too."""

    ends: np.ndarray
    """[rows + 1]: where the numbers of a row begin, and those of the next."""
    ids: np.ndarray

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many numbers each of some rows has [rows], and these, row after row."""
        starts = self.ends[rows]
        counts = self.ends[rows + 1] - starts
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
        return counts, self.ids[places]


def repeated_texts(tables: Sequence[RowTable]) -> RepeatedTexts | None:
    """The texts that these tables repeat; None where all differ. They are found once for tables that are kept, and
    then lie beside these."""
    kept = [table.kept_as for table in tables if table.kept_as is not None]
    if not kept:
        return find_repeated(tables)
    names = [_digest_of(table).hex() if table.kept_as is None else table.kept_as.name for table in tables]
    folder = kept[0].with_name(digest(*names, size=16).hex())
    if not folder.is_dir():
        with write_folder(folder) as temporary, open(temporary / IDS, "wb") as file:
            ends, found = _find(tables)
            np.save(temporary / ENDS, ends)
            header = {"descr": "<u8", "fortran_order": False, "shape": (int(ends[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
            for of_block in found:
                file.write(of_block.tobytes())
    ends, ids = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (ENDS, IDS))
    return RepeatedTexts(ends, ids) if len(ids) else None


def find_repeated(tables: Sequence[RowTable]) -> RepeatedTexts | None:
    """The same in memory, wherever the tables lie."""
    ends, found = _find(tables)
    return RepeatedTexts(ends, np.concatenate(list(found))) if ends[-1] else None


def _find(tables: Sequence[RowTable]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Sort the numbers of all texts, a share of them at a time, and keep those that stand there twice: where each
    row's begin and those of the next, and the numbers, block by block."""
    total = sum(len(ids) for ids, _ in _blocks(tables))
    shares = -(-total // IDS_AT_ONCE)
    repeated = np.concatenate([np.zeros(0, np.uint64), *(_repeated(tables, share, shares) for share in range(shares))])
    repeated.sort()
    counts, stand_twice = [np.zeros(1, np.int64)], []
    for ids, starts in _blocks(tables):
        stand_twice.append(_are_among(ids, repeated))
        counts.append(np.diff(np.concatenate([[0], np.cumsum(stand_twice[-1])])[starts]))
    found = (ids[mine] for (ids, _), mine in zip(_blocks(tables), stand_twice, strict=True))
    return np.cumsum(np.concatenate(counts)), found


def _are_among(ids: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    if not len(repeated):
        return np.zeros(len(ids), bool)
    places = np.minimum(np.searchsorted(repeated, ids), len(repeated) - 1)
    return repeated[places] == ids


def _repeated(tables: Sequence[RowTable], share: int, shares: int) -> np.ndarray:
    """The numbers that stand twice, of those that leave this rest when divided by `shares`."""
    ids = np.concatenate([ids if shares == 1 else ids[ids % np.uint64(shares) == share] for ids, _ in _blocks(tables)])
    ids.sort()
    return np.unique(ids[1:][ids[1:] == ids[:-1]])


def _blocks(tables: Sequence[RowTable]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for table in tables:
        yield from table.blocks_of_ids()


def _digest_of(table: RowTable) -> bytes:
    return digest(*(ids.tobytes() for ids, _ in table.blocks_of_ids()))
