"""Packed binary files of TinyLlama, written here by their description, are read token by token."""

from __future__ import annotations

import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

from llamafactory_embed.data.document_batches import DocumentBatches
from llamafactory_embed.data.documents import load_documents
from llamafactory_embed.data.packed_tokens import read_chunks, read_rows
from tests.tiny_models import tiny_tokenizer


ROOT = Path(__file__).parents[2]
UINT16, INT32 = (8, "<u2"), (4, "<i4")
SEPARATOR = 2


def chunk(tokens: list[int], number_type: tuple[int, str] = UINT16, version: int = 1) -> bytes:
    """A header (magic, version, code of the number type, number of tokens) and the tokens."""
    code, numbers = number_type
    header = b"LITPKDS" + struct.pack("<Q", version) + struct.pack("<B", code) + struct.pack("<Q", len(tokens))
    return header + np.array(tokens, dtype=numbers).tobytes()


def write(path: Path, *chunks: bytes) -> str:
    path.write_bytes(b"".join(chunks))
    return str(path)


@pytest.mark.parametrize("number_type", [UINT16, INT32])
def test_every_chunk_of_a_file_is_read(tmp_path: Path, number_type: tuple[int, str]) -> None:
    tokens = [[5, 6, SEPARATOR, 40_000, 8], [9, SEPARATOR, 10, 11, 12]]
    if number_type == INT32:
        tokens[0][3] = 100_000
    path = write(tmp_path / "train_slim_0000000000.bin", *(chunk(each, number_type) for each in tokens))
    assert [each.tolist() for each in read_chunks(path)] == tokens


def test_rows_are_cut_from_chunks_and_what_fills_the_last_one_is_dropped(tmp_path: Path) -> None:
    filled = chunk([7, 8, 9, SEPARATOR, SEPARATOR, SEPARATOR])
    path = write(tmp_path / "tokens.bin", chunk([1, SEPARATOR, 3, 4, 5, 6]), filled, chunk([SEPARATOR] * 6))
    assert list(read_rows(path, 4)) == [[1, 2, 3, 4], [5, 6], [7, 8, 9, 2], [2, 2], [2, 2, 2, 2], [2, 2]]
    assert list(read_rows(path, 4, SEPARATOR)) == [[1, 2, 3, 4], [5, 6], [7, 8, 9, 2]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "tokens.bin is empty"),
        (b"PK\x03\x04" + b"\0" * 40, "byte 0: this is no file of packed tokens"),
        (chunk([1, 2])[:20], "byte 0: this is no file of packed tokens"),
        (chunk([1, 2], version=2), "byte 0: packed tokens of version 2 are not known"),
        (chunk([1, 2], (7, "<f8")), "byte 0: the number type 7 is not known or not one of whole numbers"),
        (chunk([]), "byte 0: a chunk without tokens"),
        (chunk([1, 2, 3])[:-2], "tokens.bin is cut off: 2 bytes of its 3 tokens are missing"),
        (chunk([1, 2]) + b"more", "byte 28: this is no file of packed tokens"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = write(tmp_path / "tokens.bin", content)
    with pytest.raises(ValueError, match=problem):
        list(read_chunks(path))


def convert(tmp_path: Path, *arguments: str) -> Path:
    """The script's output for rows of 4 tokens: SlimPajama's are 1xx, StarCoder's 2xx."""
    write(tmp_path / "train_slim_0.bin", chunk(list(range(100, 140))))
    write(tmp_path / "train_slim_1.bin", chunk(list(range(140, 180))))
    write(tmp_path / "train_star_0.bin", chunk(list(range(200, 280))))
    main = runpy.run_path(str(ROOT / "scripts" / "convert_packed_tokens.py"))["main"]
    output = tmp_path / "converted"
    sources = [("train_slim_*.bin", "0.69"), ("train_star_*.bin", "0.31")]
    words = [word for pattern, share in sources for word in ("--source", str(tmp_path / pattern), share)]
    main([*words, "--length", "4", "--output", str(output), *arguments])
    return output


def test_the_stage_reads_converted_files_in_their_shares(tmp_path: Path) -> None:
    output = convert(tmp_path, "--validation", "3")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("converted")] == ["converted"]
    data = load_documents(
        ModelArguments(model_name_or_path="x"),
        DataArguments(dataset="unused", tokenized_path=str(output)),
        TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True),
        tiny_tokenizer(),
        line_by_line=False,
        packing=True,
    )
    train, held_out = data.train, data.evaluation
    assert train is not None
    assert held_out is not None
    rows = [list(row["input_ids"]) for row in [*held_out, *train]]
    assert len(held_out) == 3
    assert all(len(row) == 4 for row in rows)
    slim = [row for row in rows if row[0] < 200]
    assert slim == [list(range(start, start + 4)) for start in range(100, 180, 4)], "all of SlimPajama, in its order"
    assert len(rows) - len(slim) == 9, "31 of every 100 rows"
    batch = next(iter(DocumentBatches(train, 2, 42)))
    assert [row.lengths for row in batch] == [[4], [4]], "a row is one document"


def test_conversion_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert len(list(convert(tmp_path, "--rows", "5").rglob("*.arrow"))) == 1
    with pytest.raises(ValueError, match=r"`--output`: .* exists; name another folder"):
        convert(tmp_path)
    main = runpy.run_path(str(ROOT / "scripts" / "convert_packed_tokens.py"))["main"]
    with pytest.raises(ValueError, match=r"`--source`: there is no file .*nothing\*\.bin"):
        main(["--source", str(tmp_path / "nothing*.bin"), "1", "--output", str(tmp_path / "other")])
    write(tmp_path / "cut.bin", chunk([1, 2, 3])[:-2])
    with pytest.raises(ValueError, match=r"cut\.bin is cut off: 2 bytes"):
        main(["--source", str(tmp_path / "cut.bin"), "1", "--output", str(tmp_path / "other")])
    source = str(tmp_path / "train_star_0.bin")
    with pytest.raises(ValueError, match="There is no row left to train on"):
        main(["--source", source, "1", "--validation", "1", "--output", str(tmp_path / "other")])
    assert not list(tmp_path.glob("other*"))
