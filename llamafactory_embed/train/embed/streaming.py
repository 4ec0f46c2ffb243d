"""Streamed tasks behind the Trainer, which counts batches and numbers rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch.utils.data import Dataset

from ...data.retrieval.rows import Example
from ...data.retrieval.stream import StreamedBatches


class StreamedBatchSampler:
    """The batches of a whole run: when a task is used up, the next pass over the streams begins.

    It yields the examples themselves where others yield their numbers, so that the process of the Trainer reads each
    stream once, and data workers tokenize. A run is resumed by reading, without tokenizing, what it has seen.
    """

    def __init__(self, batches: StreamedBatches, count: int) -> None:
        self.batches = batches
        self.count = count
        self.batch_size = batches.batch_size // batches.world_size
        self.drop_last = True

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Nothing: for the Trainer, a run that is measured in steps is one epoch."""

    def __iter__(self) -> Iterator[list[Example]]:
        for number in itertools.count():
            self.batches.set_epoch(number)
            batch = None
            for batch in self.batches:
                yield batch
            if batch is None:
                raise ValueError(
                    f"`per_device_train_batch_size`: a task ends before it fills a batch of {self.batches.batch_size} "
                    "rows without duplicate texts; lower it."
                )


class StreamedExamples(Dataset[Example]):
    """The data set to such a sampler: its keys are the examples."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, example: Example) -> Example:
        return example
