"""Vectors in fewer bytes: half precision, a byte for each number, or a bit, as sentence-transformers computes them.

A byte counts the 255 equal steps between two ends that were measured on texts, the calibration: `QuantizationRanges`,
which lies beside a checkpoint. A bit is a number's sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..hparams.embedding import Precision
from .records import CheckpointRecord


STEPS = 255  # between the ends of a range
SIGNED = 128  # what int8 and binary are below uint8 and ubinary
RANGES_NAME = "quantization_ranges.json"
HOW_TO_CALIBRATE = "`llamafactory-embed encode CHECKPOINT --input SAMPLE.jsonl --calibrate`"

End = float | list[float]
"""One end of the ranges: a number for each dimension, or one for all."""


def needs_ranges(precision: Precision) -> bool:
    """Whether numbers become steps between two ends."""
    return precision in ("int8", "uint8")


def stored_as(precision: Precision, dimensions: int) -> tuple[np.dtype, int]:
    """Type and number of the columns that hold vectors of so many dimensions."""
    if precision in ("binary", "ubinary"):
        return np.dtype(np.int8 if precision == "binary" else np.uint8), (dimensions + 7) // 8
    return np.dtype(precision), dimensions


def quantize(vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None = None) -> np.ndarray:
    """Float vectors [n, d] in another precision: [n, d], or [n, d / 8] of eight bits each.

    `ranges` [2, d] are the ends between which int8 and uint8 count; what lies outside becomes the nearer end.
    """
    if precision in ("float32", "float16"):
        return vectors.astype(precision)
    if not np.isfinite(vectors).all():
        raise ValueError(f"The model's embeddings hold nan or inf, which {precision} cannot say.")
    if precision in ("binary", "ubinary"):
        codes = np.packbits(vectors > 0, axis=-1)
    else:
        starts, widths = _starts_and_widths(ranges)
        steps = np.where(widths == 0, np.float32(1), widths)
        codes = np.clip(np.floor((vectors - starts) / steps), 0, STEPS).astype(np.uint8)
    if precision in ("int8", "binary"):
        return (codes.astype(np.int16) - SIGNED).astype(np.int8)
    return codes


def dequantize(
    codes: np.ndarray, precision: Precision, dimensions: int, ranges: np.ndarray | None = None
) -> np.ndarray:
    """The vectors [n, d] of float32 that stored ones stand for: the middle of a step; for bits a vector of unit length
    whose inner products are 1 - 2 · (the share of bits that differ)."""
    dtype, columns = stored_as(precision, dimensions)
    if codes.dtype != dtype or codes.shape[-1] != columns:
        raise ValueError(
            f"Vectors of {dimensions} dimensions in {precision} have {columns} columns of {dtype}, not "
            f"{codes.shape[-1]} of {codes.dtype}."
        )
    if precision in ("float32", "float16"):
        return codes.astype(np.float32)
    if precision in ("int8", "binary"):
        codes = (codes.astype(np.int16) + SIGNED).astype(np.uint8)
    if precision in ("binary", "ubinary"):
        bits = np.unpackbits(codes, axis=-1, count=dimensions)
        return (bits.astype(np.float32) * 2 - 1) / np.float32(dimensions**0.5)
    starts, widths = _starts_and_widths(ranges)
    return (codes.astype(np.float32) + np.float32(0.5)) * widths + starts


def rounded(vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None = None) -> np.ndarray:
    """Float vectors [n, d] as they come back from being stored in another precision."""
    if precision == "float32":
        return vectors
    return dequantize(quantize(vectors, precision, ranges), precision, vectors.shape[-1], ranges)


def _starts_and_widths(ranges: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The lower ends, and the sizes of a step; a number that never changes has steps of size 0."""
    if ranges is None:
        raise ValueError("int8 and uint8 need `ranges`, the smallest and the largest number of each dimension.")
    starts, ends = ranges.astype(np.float32)
    return starts, (ends - starts) / STEPS


@dataclass(frozen=True)
class QuantizationRanges(CheckpointRecord):
    """Between which ends the numbers of a checkpoint's embeddings lie, for each size that it was trained for."""

    file_name: ClassVar[str] = RANGES_NAME
    described_as: ClassVar[str] = "a calibrated checkpoint"

    ranges: dict[str, list[End]]
    """By the number of dimensions: the lower and the upper end."""
    unit_length: bool
    """Whether they are those of embeddings of unit length."""
    texts: int = 0
    """How many were measured; 0 where the ends follow from how the model computes."""
    batches: int = 0
    """Of how many batches of a training the ends are the running mean; 0 where they are the extremes of all texts."""

    @classmethod
    def read(cls, path: str | Path) -> QuantizationRanges:
        """From a file of any name."""
        if not Path(path).is_file():
            raise ValueError(f"There is no file of ranges {path}: make it with {HOW_TO_CALIBRATE}.")
        return cls._read(Path(path))

    def of(self, dimensions: int, unit_length: bool) -> np.ndarray:
        """The ends [2, dimensions] for embeddings of this size."""
        if unit_length != self.unit_length:
            measured, asked = ("", "not ") if self.unit_length else ("not ", "")
            raise ValueError(
                f"The ranges were measured on embeddings {measured}of unit length, these are {asked}of unit length: "
                f"measure them again, {HOW_TO_CALIBRATE}."
            )
        if str(dimensions) not in self.ranges:
            raise ValueError(
                f"There are no ranges for {dimensions} dimensions, only for {', '.join(self.ranges)}: measure them "
                f"again, {HOW_TO_CALIBRATE}."
            )
        ends = [np.broadcast_to(np.asarray(end, np.float32), dimensions) for end in self.ranges[str(dimensions)]]
        return np.stack(ends).astype(np.float32)


class RangeMeter:
    """Measures ranges on embeddings that come in any portions."""

    def __init__(self, sizes: list[int], unit_length: bool) -> None:
        self._ends: dict[int, np.ndarray] = {size: np.array([[np.inf], [-np.inf]]) for size in sizes}
        self._unit_length = unit_length
        self._texts = 0

    def add(self, vectors: np.ndarray) -> None:
        """Measure embeddings [n, d] that are neither cut nor normalized."""
        if not np.isfinite(vectors).all():
            raise ValueError("The model's embeddings hold nan or inf, so no ranges can be measured.")
        self._texts += len(vectors)
        for size, (lowest, highest) in self._ends.items():
            cut = vectors[:, :size]
            if self._unit_length:
                cut = cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(min=1e-12)
            if len(cut):
                self._ends[size] = np.stack([np.minimum(lowest, cut.min(0)), np.maximum(highest, cut.max(0))])

    def finish(self) -> QuantizationRanges:
        """The ranges of all that was added."""
        if self._texts < 2:
            raise ValueError(f"Ranges cannot be measured on {self._texts} texts: give some thousands.")
        ranges = {str(size): ends.astype(np.float32).tolist() for size, ends in self._ends.items()}
        return QuantizationRanges(ranges, self._unit_length, self._texts)


def require_ranges(found: QuantizationRanges | None, source: object, precision: Precision) -> QuantizationRanges:
    """The ranges that a checkpoint keeps, which this precision needs."""
    if found is None:
        raise ValueError(
            f"`precision: {precision}` needs the ranges of the model's numbers, and {source} holds no {RANGES_NAME}: "
            f"measure them once, on some thousand texts like yours, with {HOW_TO_CALIBRATE}."
        )
    return found
