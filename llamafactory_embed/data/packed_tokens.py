"""Token ids in the packed binary files of TinyLlama (Zhang et al. 2024), on which DiffuLLaMA's 7B model was trained.

A file holds chunks one after another. Each is a header of 24 bytes (`LITPKDS`, version, code of the number type,
number of tokens) and its tokens. Documents end with a separator and go on over the borders of chunks; the last chunk
of a series is filled up with separators.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import numpy as np


MAGIC = b"LITPKDS"
VERSION = 1
HEADER = struct.Struct("<7sQBQ")
NUMBER_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Codes 6 and 7 are floating-point numbers, which are no token ids."""


def read_chunks(path: str) -> Iterator[np.ndarray]:
    """The token ids of each chunk of a file, memory-mapped."""
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"{path} is empty.")
    start = 0
    with open(path, "rb") as file:
        while start < size:
            file.seek(start)
            count, number_type = _read_header(file.read(HEADER.size), f"{path}, byte {start:,}")
            start += HEADER.size
            end = start + count * number_type.itemsize
            if end > size:
                missing = f"{end - size:,} bytes of its {count:,} tokens are missing"
                raise ValueError(f"{path} is cut off: {missing}; fetch it again.")
            yield np.memmap(path, number_type, mode="r", offset=start, shape=(count,))
            start = end


def _read_header(header: bytes, where: str) -> tuple[int, np.dtype]:
    """The number of tokens of a chunk and their type."""
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{where}: this is no file of packed tokens, which begins with {MAGIC.decode()}.")
    _, version, code, count = HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"{where}: packed tokens of version {version} are not known; {VERSION} is.")
    if code not in NUMBER_TYPES:
        raise ValueError(f"{where}: the number type {code} is not known or not one of whole numbers.")
    if count == 0:
        raise ValueError(f"{where}: a chunk without tokens.")
    return count, np.dtype(NUMBER_TYPES[code]).newbyteorder("<")


def read_rows(path: str, length: int, end_of_document: int | None = None) -> Iterator[list[int]]:
    """The tokens of a file in rows of `length`; the last row of a chunk may be shorter.

    Where the last chunk is filled up with `end_of_document`, one of these tokens is kept.
    """
    for chunk in read_chunks(path):
        tokens = chunk if end_of_document is None else _without_filling(chunk, end_of_document)
        for start in range(0, len(tokens), length):
            yield tokens[start : start + length].tolist()


def _without_filling(tokens: np.ndarray, end_of_document: int) -> np.ndarray:
    others = np.flatnonzero(tokens != end_of_document)
    return tokens[: others[-1] + 2] if len(others) else tokens[:0]
