"""Documents → rows: nothing lost, no row too long, and the same batches on any number of ranks."""

from __future__ import annotations

import itertools
from argparse import Namespace
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from llamafactory_embed.data.document_batches import DocumentBatches, DocumentRow, GivenRows, StreamedDocumentBatches
from llamafactory_embed.data.documents import DocumentProcessor, cut, fill_rows
from llamafactory_embed.host.documents import asks_for_packing
from tests.tiny_models import tiny_tokenizer


TEXTS = ["the water turns the wheel", "", "low", "a", "b", "a stone bridge\n\ncrosses the stream " * 4, "  \n"]


def process(texts: list[str], cutoff_len: int = 16, **options: Any) -> dict[str, list[list[int]]]:
    values: dict[str, Any] = {"line_by_line": False, "packing": True} | options
    processor = DocumentProcessor(
        None, tiny_tokenizer(), None, Namespace(cutoff_len=cutoff_len, template=None), **values
    )
    return processor.preprocess_dataset({"_prompt": [[{"role": "user", "content": text}] for text in texts]})


def documents_of(texts: list[str]) -> list[list[int]]:
    tokenizer = tiny_tokenizer()
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts if text.strip()]


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_is_kept_in_its_order(packing: bool) -> None:
    rows = process(TEXTS, packing=packing)
    flat = [token for row in rows["input_ids"] for token in row]
    assert flat == [token for document in documents_of(TEXTS) for token in document]
    assert [sum(lengths) for lengths in rows["lengths"]] == [len(row) for row in rows["input_ids"]]
    assert max(map(len, rows["input_ids"])) <= 16
    if not packing:
        assert all(len(lengths) == 1 for lengths in rows["lengths"])
    else:
        assert any(len(lengths) > 1 for lengths in rows["lengths"])


def test_pieces_do_not_reach_across_documents() -> None:
    rows = process(TEXTS)
    pieces = [
        tuple(row[end - length : end])
        for row, lengths in zip(rows["input_ids"], rows["lengths"], strict=True)
        for length, end in zip(lengths, itertools.accumulate(lengths), strict=True)
    ]
    assert pieces == [tuple(piece) for document in documents_of(TEXTS) for piece in cut(document, 16)]


def test_line_by_line() -> None:
    rows = process(TEXTS, line_by_line=True, packing=False, cutoff_len=64)
    lines = [line for text in TEXTS for line in text.splitlines() if line.strip()]
    assert rows["input_ids"] == documents_of(lines)


def test_empty_documents_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    process(TEXTS)
    assert "2 of 7 documents are empty" in caplog.text
    caplog.clear()
    process(["full"])
    assert not caplog.text


def test_rows_are_filled_as_far_as_pieces_fit() -> None:
    pieces = [[0] * length for length in (5, 5, 6, 1, 16, 1)]
    assert [[len(piece) for piece in row] for row in fill_rows(pieces, 16)] == [[5, 5, 6], [1], [16], [1]]
    assert fill_rows([], 16) == []


# ---------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, True),
        ({"packing": True}, True),
        ({"packing": False}, False),
        ({"packing": "false"}, False),
        ({"command_line": ["--stage", "mntp", "--packing", "false"]}, False),
        ({"command_line": ["--packing=False", "--stage", "mntp"]}, False),
        ({"command_line": ["--stage", "mntp"]}, True),
    ],
)
def test_documents_share_rows_unless_the_recipe_says_otherwise(recipe: dict[str, Any], expected: bool) -> None:
    assert asks_for_packing(Namespace(recipe=recipe)) is expected


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_get_the_rows_themselves(workers: int) -> None:
    batches = DocumentBatches(ROWS, 4, seed=3)
    loader = DataLoader(GivenRows(21), batch_sampler=batches, collate_fn=numbers, num_workers=workers)
    assert list(loader) == [numbers(batch) for batch in batches]


def test_rows_without_lengths_are_one_document() -> None:
    """As the host's own stages write them to `tokenized_path`."""
    assert DocumentRow.of_example({"input_ids": [1, 2, 3]}, 0, 0).lengths == [3]
