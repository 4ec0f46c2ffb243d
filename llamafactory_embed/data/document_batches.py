"""Which rows of documents share a batch: the same on every number of ranks, and resumable at any batch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import IterableDataset
from torch.utils.data import Dataset


@dataclass(frozen=True)
class DocumentRow:
    """Tokens of one or several documents, and the row's place in the run, from which its masks are drawn."""

    token_ids: list[int]
    lengths: list[int]
    epoch: int
    place: int
    """Its number in the epoch's order; an evaluation counts from 0 in the order of the data."""
    is_filler: bool = False
    """For a rank that has none of an epoch's last rows: the model runs, nothing is learned."""
    labels: list[int] | None = None
    """The host's labels of a row with a prompt, which are its tokens where they are learned."""

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


class GivenRows(Dataset[DocumentRow]):
    """The data set to the samplers below, which yield the rows themselves: the process of the Trainer reads, data
    workers make masks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: DocumentRow) -> DocumentRow:
        return row


class DocumentBatches:
    """This rank's part of global batches over rows that are held, shuffled anew in every epoch."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        per_rank: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("`dataset`: the data have no documents, or only empty ones.")
        self.rows = rows
        self.batch_size = per_rank
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        if drop_last and len(rows) < per_rank * world_size:
            raise ValueError(
                f"`dataloader_drop_last: true` leaves nothing of {len(rows)} rows, fewer than the global batch of "
                f"{per_rank * world_size}: lower `per_device_train_batch_size`, or leave it out."
            )

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.global_batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[DocumentRow]]:
        order = list(range(len(self.rows)))
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        for start in range(0, len(self) * self.global_batch_size, self.global_batch_size):
            places = range(start, min(start + self.global_batch_size, len(order)))
            own = places[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            if own:
                yield [self._row(order, place) for place in own]
            else:
                yield [self._row(order, start).as_filler()]

    def _row(self, order: Sequence[int], place: int) -> DocumentRow:
        return DocumentRow.of_example(self.rows[order[place]], self.epoch, place)


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
        """Nothing: for the Trainer, a run that is measured in steps is one epoch."""

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
