"""Wrappers of samplers: epochs of one length, and examples in place of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from llamafactory_embed.data.batches import EvenEpochs, GivenRows, ItemBatches
from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.rows import Example
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler
from tests.data.retrieval.helpers import make_task


class UnevenSampler:
    """Epoch n has as many batches as its list says."""

    batch_size = 1
    drop_last = True

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.lengths[self.epoch]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self.epoch, number)] for number in range(len(self))])


def test_every_epoch_is_as_long_as_the_first() -> None:
    batches = EvenEpochs(UnevenSampler([3, 2, 5, 0]))
    orders = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        assert len(batches) == 3
        orders.append([number for batch in batches for _, number in batch])
    assert orders == [[0, 1, 2], [0, 1, 0], [0, 1, 2], []]


def collate(rows: list[Example]) -> list[Example]:
    return rows


class HeldRows(RetrievalDataset):
    """Rows that refuse to leave the process."""

    def __reduce__(self) -> Any:
        raise AssertionError("a data worker got the data set")


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_data_workers_get_examples_and_no_data_set(start_method: str) -> None:
    dataset = HeldRows([make_task("t", 24)], num_negatives=2)
    sampler = GlobalBatchSampler(dataset, 8)
    batches = EvenEpochs(ItemBatches(sampler, dataset))
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        expected = [[dataset[key] for key in keys] for keys in sampler]
        loader = DataLoader(
            GivenRows[Example](24),
            batch_sampler=batches,
            num_workers=1,
            collate_fn=collate,
            multiprocessing_context=start_method,
        )
        assert list(loader) == expected
        assert {example.row_index for batch in expected for example in batch} == set(range(24))
