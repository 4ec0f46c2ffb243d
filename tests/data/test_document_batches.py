"""Batches of document rows: the same on any number of ranks, resumable, from rows and from streams."""

from __future__ import annotations

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from llamafactory_embed.data.document_batches import DocumentBatches, DocumentRow, GivenRows, StreamedDocumentBatches


ROWS = [{"input_ids": [number, number], "lengths": [1, 1]} for number in range(21)]


def numbers(batch: list[DocumentRow]) -> list[int]:
    return [row.token_ids[0] for row in batch if not row.is_filler]


def test_ranks_share_what_one_process_has() -> None:
    alone = DocumentBatches(ROWS, 8, seed=3)
    ranks = [DocumentBatches(ROWS, 4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(2):
        for each in (alone, *ranks):
            each.set_epoch(epoch)
        whole = list(alone)
        parts = list(zip(*ranks, strict=True))
        assert len(whole) == len(alone) == len(ranks[0]) == 3
        assert [numbers(batch) for batch in whole] == [numbers(one) + numbers(other) for one, other in parts]
        assert sorted(number for batch in whole for number in numbers(batch)) == list(range(21))


def test_a_rank_without_rows_gets_a_filler() -> None:
    last = [list(DocumentBatches(ROWS, 4, seed=3, rank=rank, world_size=8))[-1] for rank in range(8)]
    assert [len(numbers(batch)) for batch in last] == [4, 4, 4, 4, 4, 1, 0, 0]
    assert all(batch for batch in last)


def test_epochs_differ_and_repeat() -> None:
    batches = DocumentBatches(ROWS, 4, seed=3)
    first = [numbers(batch) for batch in batches]
    assert [row.epoch for row in next(iter(batches))] == [0] * 4
    batches.set_epoch(1)
    assert [numbers(batch) for batch in batches] != first
    batches.set_epoch(0)
    assert [numbers(batch) for batch in batches] == first
    assert [numbers(batch) for batch in DocumentBatches(ROWS, 4, seed=4)] != first
    unshuffled = [numbers(batch) for batch in DocumentBatches(ROWS, 4, seed=3, shuffle=False)]
    assert unshuffled[0] == [0, 1, 2, 3]


def test_incomplete_batches_can_be_dropped() -> None:
    assert [len(batch) for batch in DocumentBatches(ROWS, 8, seed=3, drop_last=True)] == [8, 8]
    with pytest.raises(ValueError, match=r"`dataloader_drop_last: true` leaves nothing of 21 rows"):
        DocumentBatches(ROWS, 8, seed=3, world_size=3, drop_last=True)


def test_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="`dataset`: the data have no documents"):
        DocumentBatches([], 8, seed=3)
    with pytest.raises(ValueError, match="`dataset`: the stream has no documents"):
        list(StreamedDocumentBatches(iter(()), 8, 1))


def test_streams_begin_again_and_are_shared() -> None:
    alone = list(StreamedDocumentBatches(ROWS, 8, 4))
    ranks = [list(StreamedDocumentBatches(ROWS, 4, 4, rank=rank, world_size=2)) for rank in range(2)]
    assert [numbers(batch) for batch in alone] == [
        numbers(one) + numbers(other) for one, other in zip(*ranks, strict=True)
    ]
    assert [number for batch in alone for number in numbers(batch)] == [n % 21 for n in range(32)]
    assert [row.epoch for batch in alone for row in batch] == [n // 21 for n in range(32)]


def test_a_stream_has_another_order_in_each_pass() -> None:
    stream = Dataset.from_list(ROWS).to_iterable_dataset().shuffle(seed=1, buffer_size=21)
    batches = StreamedDocumentBatches(stream, 21, 2)
    first, second = (numbers(batch) for batch in batches)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(21))
    assert [numbers(batch) for batch in batches] == [first, second]  # from the beginning, as a resumed run reads it


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_get_the_rows_themselves(workers: int) -> None:
    batches = DocumentBatches(ROWS, 4, seed=3)
    loader = DataLoader(GivenRows(21), batch_sampler=batches, collate_fn=numbers, num_workers=workers)
    assert list(loader) == [numbers(batch) for batch in batches]


def test_rows_without_lengths_are_one_document() -> None:
    """As the host's own stages write them to `tokenized_path`."""
    assert DocumentRow.of_example({"input_ids": [1, 2, 3]}, 0, 0).lengths == [3]
