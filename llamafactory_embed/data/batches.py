"""What batch samplers share: a data set whose keys are its items, rows shuffled for all ranks, even epochs."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import Dataset


Item = TypeVar("Item")


class BatchSampler(Protocol[Item]):
    """Yields this rank's part of global batches; the Trainer tells it the epoch."""

    batch_size: int
    drop_last: bool

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[Item]]: ...

    def set_epoch(self, epoch: int) -> None: ...


class GivenRows(Dataset[Item]):
    """The data set for samplers that yield the rows themselves.

    The Trainer's process reads the rows, and data workers get no more than what they are to prepare: a worker that
    holds a data set gets a pickled copy of all rows in every epoch where processes are not forked (the default from
    Python 3.14 on), and a forked one copies every row that it touches.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: Item) -> Item:
        return row


@dataclass(frozen=True)
class RowPlace:
    """A row's index in the data, and its place in the order of an epoch."""

    index: int
    place: int
    is_filler: bool = False
    """For a rank that has none of an epoch's last rows: the model runs, nothing is learned."""


class ShuffledBatches(ABC, Generic[Item]):
    """This rank's part of global batches over `count` rows, shuffled anew in every epoch."""

    def __init__(
        self,
        count: int,
        per_rank: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.count = count
        self.batch_size = per_rank
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        if drop_last and count < self.global_batch_size:
            raise ValueError(
                f"`dataloader_drop_last: true` leaves nothing of {count} rows, fewer than the global batch of "
                f"{self.global_batch_size}: lower `per_device_train_batch_size`, or leave it out."
            )

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.global_batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @abstractmethod
    def row(self, place: RowPlace) -> Item:
        """What a batch holds for a place."""

    def __iter__(self) -> Iterator[list[Item]]:
        order = list(range(self.count))
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        for start in range(0, len(self) * self.global_batch_size, self.global_batch_size):
            places = range(start, min(start + self.global_batch_size, self.count))
            of_rank = places[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            rows = [RowPlace(order[place], place) for place in of_rank]
            yield [self.row(place) for place in rows or [RowPlace(order[start], start, is_filler=True)]]


class ItemBatches(Generic[Item]):
    """A sampler's batches with the items of a data set in place of their keys, for `GivenRows`."""

    def __init__(self, sampler: BatchSampler[Any], dataset: Dataset[Item]) -> None:
        self.sampler = sampler
        self.dataset = dataset
        self.batch_size = sampler.batch_size
        self.drop_last = sampler.drop_last

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Item]]:
        for keys in self.sampler:
            yield [self.dataset[key] for key in keys]


class EvenEpochs(Generic[Item]):
    """A sampler's batches, as many in every epoch as in the first.

    An epoch may drop rows whose texts would repeat in a batch, so epochs differ in length. The Trainer counts steps by
    the first epoch's length, also to find the place where a checkpoint was saved; a shorter epoch starts over.
    """

    def __init__(self, sampler: BatchSampler[Item]) -> None:
        self.sampler = sampler
        self.length = len(sampler)
        self.batch_size = sampler.batch_size
        self.drop_last = sampler.drop_last

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[Item]]:
        count = before = 0
        while count < self.length:
            for batch in itertools.islice(self.sampler, self.length - count):
                count += 1
                yield batch
            if count == before:
                return  # no batch at all can be made in this epoch
            before = count
