"""Epochs of one length over samplers whose epochs differ."""

from __future__ import annotations

from collections.abc import Iterator

from llamafactory_embed.data.batches import EvenEpochs


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
