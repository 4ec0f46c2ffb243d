"""Files of JSON lines cut into parts of whole lines, which several processes read side by side."""

from __future__ import annotations

import io
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from .files import LocatedRecord, data_files, explain_damage, is_saved_dataset, json_rows, numbered_rows


ENDING = ".jsonl"
BYTES_AT_ONCE = 2**20


@dataclass(frozen=True)
class FilePart:
    """The lines of a file between two of its bytes."""

    path: str
    start: int
    end: int


def cut_files(location: str, shares: int) -> list[list[FilePart]]:
    """A file, or the data files of a folder, in shares of about as many bytes, one after another; nothing where they
    cannot be cut, because they are packed or no JSON lines."""
    names = data_files(location) if os.path.isdir(location) and not is_saved_dataset(location) else []
    paths = [os.path.join(location, name) for name in names] or [location]
    if not all(path.lower().endswith(ENDING) and os.path.isfile(path) for path in paths):
        return []
    sizes = list(map(os.path.getsize, paths))
    starts = [0, *itertools.accumulate(sizes)]
    edges = [(0, 0)]
    for share in range(1, shares):
        place = starts[-1] * share // shares
        index = bisect_right(starts, place) - 1
        edges.append(max(edges[-1], (index, _next_line(paths[index], place - starts[index]))))
    edges.append((len(paths) - 1, sizes[-1]))
    cut = []
    for (first, start), (last, end) in itertools.pairwise(edges):
        parts = [
            FilePart(paths[index], start * (index == first), end if index == last else sizes[index])
            for index in range(first, last + 1)
        ]
        cut.append([part for part in parts if part.start < part.end])
    return list(filter(None, cut))


def count_rows(part: FilePart) -> tuple[int, int]:
    """How many lines a part has, and how many of them hold a record."""
    lines = records = 0
    with _open_part(part) as file:
        for _, text in numbered_rows(file, part.path):
            lines += 1
            records += bool(text.strip())
    return lines, records


def read_part(part: FilePart, lines_before: int) -> Iterator[LocatedRecord]:
    """The records of a part, before which its file has so many lines."""
    with _open_part(part) as file:
        rows = ((lines_before + line, text) for line, text in numbered_rows(file, part.path))
        yield from explain_damage(json_rows(rows, part.path), part.path)


def _next_line(path: str, place: int) -> int:
    """Where the first line begins that does so at this place or after it. After a line feed begins a line, whatever
    else may end lines."""
    if place == 0:
        return 0
    with open(path, "rb") as file:
        file.seek(place - 1)
        while (piece := file.readline(BYTES_AT_ONCE)) and not piece.endswith(b"\n"):
            pass
        return file.tell()


def _open_part(part: FilePart) -> TextIO:
    encoding = "utf-8" if part.start else "utf-8-sig"  # a mark may stand at the start of a file, and nowhere else
    return io.TextIOWrapper(io.BufferedReader(_BytesOfPart(part), BYTES_AT_ONCE), encoding, newline="")


class _BytesOfPart(io.RawIOBase):
    """A file that begins and ends where the part does."""

    def __init__(self, part: FilePart) -> None:
        self._file = io.FileIO(part.path)
        self._file.seek(part.start)
        self._left = part.end - part.start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
