"""Which rows of documents share a batch: the same on every number of ranks, and resumable at any batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import IterableDataset

from .batches import GivenRows, RowPlace, ShuffledBatches


__all__ = ["IGNORED", "DocumentBatches", "DocumentRow", "GivenRows", "StreamedDocumentBatches"]

IGNORED = -100  # the host's label of a token that is not learned


@dataclass(frozen=True)
class DocumentRow:
    """Tokens of one or several documents, and the row's place in the run, which seeds its masks."""

    token_ids: list[int]
    lengths: list[int]
    epoch: int
    place: int
    """Its number in the epoch's order; in an evaluation, its number in the data."""
    is_filler: bool = False
    """For a rank that has none of an epoch's last rows: the model runs, nothing is learned."""
    labels: list[int] | None = None
    """The host's labels of a row with a prompt: its tokens where they are learned."""

    @classmethod
    def of_example(cls, example: Mapping[str, Any], epoch: int, place: int) -> DocumentRow:
        """A row of the data set; without `lengths` it is one document."""
        tokens = list(example["input_ids"])
        lengths = example.get("lengths")
        labels = example.get("labels")
        return cls(
            tokens,
            [len(tokens)] if lengths is None else list(lengths),
            epoch,
            place,
            labels=None if labels is None else list(labels),
        )

    def as_filler(self) -> DocumentRow:
        return replace(self, is_filler=True)


class DocumentBatches(ShuffledBatches[DocumentRow]):
    """This rank's part of global batches over rows that are held, shuffled anew in every epoch."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], per_rank: int, seed: int, **settings: Any) -> None:
        """`settings` are those of `ShuffledBatches`: rank, world_size, shuffle, drop_last."""
        if len(rows) == 0:
            raise ValueError("`dataset`: the data have no documents, or only empty ones.")
        super().__init__(len(rows), per_rank, seed, **settings)
        self.rows = rows

    def row(self, place: RowPlace) -> DocumentRow:
        row = DocumentRow.of_example(self.rows[place.index], self.epoch, place.place)
        return row.as_filler() if place.is_filler else row


class StreamedDocumentBatches:
    """The same over a stream: `count` batches, in the stream's order; when it ends, the next pass over it begins."""

    drop_last = True

    def __init__(
        self, stream: Iterable[Mapping[str, Any]], per_rank: int, count: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.stream = stream
        self.batch_size = per_rank
        self.count = count
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Ignored: for the Trainer, a run measured in steps is one epoch."""

    def __iter__(self) -> Iterator[list[DocumentRow]]:
        rows = self._rows()
        for _ in range(self.count):
            batch = list(itertools.islice(rows, self.batch_size * self.world_size))
            yield batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _rows(self) -> Iterator[DocumentRow]:
        for epoch in itertools.count():
            if isinstance(self.stream, IterableDataset):
                self.stream.set_epoch(epoch)  # another order in its buffer
            place = -1
            for place, example in enumerate(self.stream):
                yield DocumentRow.of_example(example, epoch, place)
            if place < 0:
                raise ValueError("`dataset`: the stream has no documents, or only empty ones.")
