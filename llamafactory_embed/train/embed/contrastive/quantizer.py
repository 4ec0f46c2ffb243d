"""Quantization-aware training: the loss sees embeddings as they come back from bytes or bits, and the ends between
which a byte counts are measured on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....hparams.contrastive import ContrastiveOptions
from ....model.quantization import RANGES_NAME, QuantizationRanges
from ....model.quantization_aware import TrainedPrecision, extremes, straight_through
from ..gather import gather, world_size
from ..losses.rows import EmbeddedRows


KEPT = 0.99  # of the ends before, once there have been a hundred batches


class EmbeddingQuantizer:
    """The precision, and the ends between which a byte counts for each size that is served.

    The ends are running means over batches of the extremes of all ranks' embeddings: the plain mean of the first
    hundred, then one that forgets. So they follow a model that changes, and are the same on every rank. They are
    measured for bits, too: a checkpoint can then be stored in either.
    """

    def __init__(self, precision: TrainedPrecision, sizes: Sequence[int], unit_length: bool) -> None:
        """`sizes` are those of Matryoshka; the whole embedding is measured anyway."""
        self.precision = precision
        self.sizes = sizes
        self.unit_length = unit_length
        self.ends: dict[int, Tensor] = {}  # size → [2, size]
        self.texts = self.batches = 0

    @classmethod
    def of(cls, options: ContrastiveOptions, sizes: Sequence[int] | None) -> EmbeddingQuantizer | None:
        """That of a recipe which asks for one."""
        if options.quantization_aware == "none":
            return None
        return cls(options.quantization_aware, sizes or [], options.normalize_embeddings)

    def measure(self, rows: EmbeddedRows) -> None:
        """Let the ends follow a batch; every rank has to, at the same time."""
        embeddings = torch.cat([rows.queries, rows.passages.flatten(0, 1)]).detach()
        keep = min(KEPT, self.batches / (self.batches + 1))
        for size in sorted({*self.sizes, embeddings.shape[-1]}):
            lowest, highest = gather(extremes(self._as_served(embeddings[:, :size])).unsqueeze(0)).unbind(dim=1)
            found = torch.stack([lowest.amin(dim=0), highest.amax(dim=0)])
            before = self.ends.get(size, found).to(found.device)
            self.ends[size] = keep * before + (1 - keep) * found
        self.batches += 1
        self.texts += len(embeddings) * world_size()

    def as_stored(self, rows: EmbeddedRows) -> EmbeddedRows:
        """The rows, cut to a size that was measured, with embeddings that come back from being stored."""
        return dataclasses.replace(rows, queries=self._read(rows.queries), passages=self._read(rows.passages))

    def _read(self, embeddings: Tensor) -> Tensor:
        ends = self.ends[embeddings.shape[-1]] if self.precision == "int8" else None
        return straight_through(self._as_served(embeddings), self.precision, ends)

    def _as_served(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=-1) if self.unit_length else embeddings

    # ------------------------------------------------- checkpoints ----------------------------------------------

    @property
    def ranges(self) -> QuantizationRanges | None:
        """What was measured, as `encode` and `eval` read it; None before the first batch."""
        if not self.ends:
            return None
        ranges = {str(size): ends.tolist() for size, ends in self.ends.items()}
        return QuantizationRanges(ranges, self.unit_length, self.texts, self.batches)

    def save(self, folder: Path) -> None:
        """Write the ends beside a checkpoint."""
        if self.ranges is not None:
            self.ranges.save(folder)

    def load(self, folder: Path, device: torch.device) -> None:
        """Go on with the ends of a checkpoint."""
        if not (folder / RANGES_NAME).is_file():
            return  # there are none before the first step
        saved = QuantizationRanges.load(folder)
        self.ends = {int(size): torch.tensor(ends, device=device) for size, ends in saved.ranges.items()}
        self.texts, self.batches = saved.texts, saved.batches
