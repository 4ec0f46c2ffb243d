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
        found = find_repeated(tables) or RepeatedTexts(np.zeros(0, np.int64), np.zeros(0, np.uint64))
        with write_folder(folder) as temporary:
            np.save(temporary / ENDS, found.ends)
            np.save(temporary / IDS, found.ids)
    ends, ids = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (ENDS, IDS))
    return RepeatedTexts(ends, ids) if len(ids) else None


def find_repeated(tables: Sequence[RowTable]) -> RepeatedTexts | None:
    """Sort the numbers of all texts, a share of them at a time, and keep those that stand there twice."""
    total = sum(len(ids) for ids, _ in _blocks(tables))
    shares = -(-total // IDS_AT_ONCE)
    repeated = np.concatenate([np.zeros(0, np.uint64), *(_repeated(tables, share, shares) for share in range(shares))])
    if not len(repeated):
        return None
    repeated.sort()
    counts, kept = [], []
    for ids, starts in _blocks(tables):
        places = np.minimum(np.searchsorted(repeated, ids), len(repeated) - 1)
        stands_twice = repeated[places] == ids
        counts.append(np.diff(np.concatenate([[0], np.cumsum(stands_twice)])[starts]))
        kept.append(ids[stands_twice])
    return RepeatedTexts(np.cumsum(np.concatenate([[0], *counts])), np.concatenate(kept))


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
