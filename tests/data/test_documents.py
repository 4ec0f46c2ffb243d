"""Documents → rows: nothing lost, no row too long."""

from __future__ import annotations

import itertools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llamafactory_embed.data.documents import DocumentProcessor, cut, load_documents, pack_pieces
from llamafactory_embed.data.gaps import tokenize_with_gap
from llamafactory_embed.host.documents import asks_for_packing
from llamafactory_embed.sampling.rows import decode_part
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
    assert [[len(piece) for piece in row] for row in pack_pieces(pieces, 16)] == [[5, 5, 6], [1], [16], [1]]
    assert pack_pieces([], 16) == []


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


@pytest.mark.parametrize("buffer_size", [1, 16])
def test_the_order_of_a_stream_does_not_depend_on_data_workers(buffer_size: int, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"line {number}\n" for number in range(64)), encoding="utf-8")
    registry = {"lines": {"file_name": "lines.txt", "columns": {"prompt": "text"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    data_args = DataArguments(
        dataset="lines", dataset_dir=str(tmp_path), streaming=True, buffer_size=buffer_size, cutoff_len=16
    )

    def read(workers: int) -> list[list[int]]:
        training_args = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=1, dataloader_num_workers=workers, do_train=True, use_cpu=True
        )
        model_args = ModelArguments(model_name_or_path="none", cache_dir=str(tmp_path / "cache"))
        data = load_documents(
            model_args, data_args, training_args, tiny_tokenizer(), line_by_line=False, packing=False
        )
        assert training_args.dataloader_num_workers == workers
        return [example["input_ids"] for example in data.train]

    alone = read(0)
    assert len(alone) == 64
    assert (alone == documents_of([f"line {number}" for number in range(64)])) is (buffer_size == 1)
    assert read(1) == read(3) == alone


# ---------------------------------------------- texts whose gap is known ---------------------------------------------


def process_gaps(rows: list[tuple[str, str | None]], cutoff_len: int = 64, packing: bool = True) -> Any:
    data_args = Namespace(cutoff_len=cutoff_len, template=None)
    processor = DocumentProcessor(None, tiny_tokenizer(), None, data_args, False, packing, with_gaps=True)  # type: ignore[arg-type]
    examples = {
        "_prompt": [[{"role": "user", "content": text}] for text, _ in rows],
        "_response": [[] if answer is None else [{"role": "assistant", "content": answer}] for _, answer in rows],
    }
    return processor.preprocess_dataset(examples)


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_holds_the_answer_in_its_gap_and_labels_say_where(packing: bool) -> None:
    tokenizer = tiny_tokenizer()
    rows = process_gaps(
        [("a stone bridge", None), (" ", "x"), ("The people<gap> at peace", " are"), ("no gap", "an answer")],
        packing=packing,
    )
    assert all(map(len, rows["labels"])), "a row without a gap has labels, too"
    tokens = [token for row in rows["input_ids"] for token in row]
    labels = [label for row in rows["labels"] for label in row]
    expected = documents_of(["a stone bridge", "The people are at peace", "no gap"])
    assert tokenizer.decode(tokens) == "".join(map(tokenizer.decode, expected))
    assert [len(row) for row in rows["labels"]] == [len(row) for row in rows["input_ids"]]
    places = [place for place, label in enumerate(labels) if label != -100]
    assert tokenizer.decode([labels[place] for place in places]) == " are"
    assert [tokens[place] for place in places] == [labels[place] for place in places]
    assert places == list(range(places[0], places[-1] + 1))


def test_a_gap_without_its_context_or_its_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="more than `cutoff_len: 4`: raise it"):
        process_gaps([("The people<gap> at peace", " are")], cutoff_len=4)
    with pytest.raises(ValueError, match="has 2, and the answer is 'x'"):
        process_gaps([("<gap> and <gap>", "x")])
    with pytest.raises(ValueError, match="has 1, and the answer is ''"):
        process_gaps([("one <gap>", "")])


def test_sentencepiece_adds_no_space_inside_of_a_text() -> None:
    """It writes a space before every text that it tokenizes by itself, and drops one before what it decodes."""
    pieces = ["<unk>", "<s>", "\n", "▁", "▁▁", "▁▁▁▁", "▁return", "return", "▁x", "x", "def", "▁def", "0"]
    backend = Tokenizer(models.Unigram([(piece, -float(piece == "▁")) for piece in pieces], unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")
    assert tokenizer.decode(tokenizer("def").input_ids + tokenizer("x").input_ids) == "def x"

    tokens, holes = tokenize_with_gap(tokenizer, "def\n<gap>\nx", "    return x", [])
    assert tokenizer.decode(tokens) == "def\n    return x\nx"
    gap = slice(holes.index(True), holes.index(True) + sum(holes))
    assert decode_part(tokenizer, tokens, gap) == "    return x"
    assert tokenizer.decode(tokens[gap]) == "   return x", "by themselves, the tokens lose a space"
