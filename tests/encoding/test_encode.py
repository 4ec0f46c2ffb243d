"""`encode`: every way to a file of vectors gives the vectors of `Encoder.encode`, interrupted or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.cli import main
from llamafactory_embed.encoding import encode
from llamafactory_embed.encoding.vector_files import UnfinishedVectors
from llamafactory_embed.loading.checkpoint import save_checkpoint
from llamafactory_embed.model.quantization import RANGES_NAME
from tests.embedders import INSTRUCTION, PROSE, make_embedder
from tests.patience import PATIENCE
from tests.tiny_models import tiny_tokenizer


TEXTS = [f"{number} {line[: 5 + 9 * number % 80]}" for number in range(9) for line in PROSE][:50]

Encode = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode") / "checkpoint"
    options = {"matryoshka_dims": [8, 16], "instructions": {"next_line": INSTRUCTION}, "max_tokens_per_batch": 64}
    save_checkpoint(make_embedder(**options), folder)
    tiny_tokenizer().save_pretrained(folder)
    assert main(["encode", str(folder), "--input", str(write_texts(folder.parent / "sample.txt")), "--calibrate"]) == 0
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder(checkpoint, device="cpu")


@pytest.fixture
def encode_cli(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Encode:
    """The command in this process, in windows of seven texts: exit code, and what it said."""
    monkeypatch.setattr(encode, "WINDOW", 7)

    def run(*words: object) -> tuple[int, str]:
        code = main(["encode", str(checkpoint), *map(str, words)])
        return code, capsys.readouterr().err

    return run


def write_texts(path: Path) -> Path:
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def write_as(kind: str, folder: Path) -> Path:
    """The same texts in a file of that kind."""
    path = folder / f"texts.{kind}"
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS))
    if kind == "txt":
        path.write_bytes(("\ufeff" + "\r\n".join(TEXTS)).encode("utf-8"))  # BOM, CRLF, and no end of the last line
    elif kind == "jsonl":
        path.write_bytes(("\ufeff" + lines.replace("\n", "\r\n\r\n")).encode("utf-8"))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode("utf-8")))
    elif kind == "csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *enumerate(TEXTS)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_every_kind_of_input_gives_the_vectors_of_the_encoder(
    kind: str, encode_cli: Encode, encoder: Encoder, tmp_path: Path
) -> None:
    code, said = encode_cli("--input", write_as(kind, tmp_path), "--output", tmp_path / "vectors.npy")
    assert code == 0, said
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), encoder.encode(TEXTS), atol=1e-5)
    assert "50 vectors of 32 dimensions in float32" in said
    assert {path.name for path in tmp_path.iterdir()} == {f"texts.{kind}", "vectors.npy"}


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_every_precision_is_the_encoders(precision: str, encode_cli: Encode, encoder: Encoder, tmp_path: Path) -> None:
    how = {"task": "next_line", "dimensions": 8}
    words = ("--task", "next_line", "--dimensions", 8, "--precision", precision)
    assert encode_cli("--input", write_texts(tmp_path / "t.txt"), "--output", tmp_path / "v.npy", *words)[0] == 0
    found = np.load(tmp_path / "v.npy")
    windows = [encoder.encode(TEXTS[n : n + 7], precision=precision, **how) for n in range(0, 50, 7)]
    np.testing.assert_array_equal(found, np.concatenate(windows))


def test_the_ranges_of_a_calibration_are_those_of_sentence_transformers(encoder: Encoder, checkpoint: Path) -> None:
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    assert encoder.ranges is not None
    assert encoder.ranges.texts == len(TEXTS)
    for size in (8, 16, 32):
        vectors = encoder.encode(TEXTS, dimensions=size)
        ranges = encoder.ranges.of(size, unit_length=True)
        np.testing.assert_allclose(ranges, [vectors.min(0), vectors.max(0)], atol=1e-6)
        expected = theirs.quantize_embeddings(vectors, "int8", ranges=ranges)
        np.testing.assert_array_equal(encoder.encode(TEXTS, dimensions=size, precision="int8"), expected)


ROWS = [
    {
        "id": f"row-{number}",
        "text": text,
        "year": 1900 + number if number % 2 else None,
        "tags": ["a", "b"][: number % 3],
        "source": {"page": number},
        "score": number if number < 20 else number + 0.5,  # a window of whole numbers, then another
        "mixed": number if number < 40 else "forty",
        "large": 2**60 + number if number < 40 else 0.5,  # no float holds it
        "nothing": {},
        "half": "\ud83d",
        **({"late": True} if number == 49 else {}),
    }
    for number, text in enumerate(TEXTS)
]
KEPT_AS_JSON = ("mixed", "large", "nothing", "half")


def test_a_table_holds_the_rows_of_the_input_and_their_vectors(
    encode_cli: Encode, encoder: Encoder, tmp_path: Path
) -> None:
    texts, output = tmp_path / "texts.jsonl", tmp_path / "vectors.parquet"
    texts.write_text("".join(json.dumps({**row, "vector": "old"}) + "\n" for row in ROWS), encoding="utf-8")
    code, said = encode_cli("--input", texts, "--output", output, "--precision", "int8")
    assert code == 0, said
    assert "`vector` is the new one" in said
    assert "kept as JSON: `mixed`, `large`, `nothing`, `half`" in said
    table = pyarrow.parquet.read_table(output)
    assert table.column_names == [*ROWS[-1], "vector"]
    for name in ROWS[-1]:
        found = [json.loads(value) if name in KEPT_AS_JSON else value for value in table[name].to_pylist()]
        assert found == [row.get(name) for row in ROWS], name
    windows = [encoder.encode(TEXTS[n : n + 7], precision="int8") for n in range(0, 50, 7)]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.int8), np.concatenate(windows))
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "vectors.parquet"}


def test_a_table_of_a_table_keeps_its_types_and_of_lines_their_texts(encode_cli: Encode, tmp_path: Path) -> None:
    days = pyarrow.array(range(52), pyarrow.date32())
    numbers = pyarrow.array(range(52), pyarrow.int16())
    kinds = pyarrow.array(["a", "b"] * 26).dictionary_encode()
    whole = pyarrow.table({"number": numbers, "question": ["", *TEXTS, " "], "day": days, "text": kinds})
    pyarrow.parquet.write_table(whole, tmp_path / "texts.parquet")
    words = ("--input", tmp_path / "texts.parquet", "--column", "question", "--skip-bad-rows")
    assert encode_cli(*words, "--output", tmp_path / "v.parquet")[0] == 0
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").drop_columns("vector")
    assert table.schema.types == whole.schema.types
    assert table.to_pylist() == whole.to_pylist()[1:-1]  # rows that were left out have no vector

    for kind, expected in (("txt", {}), ("csv", {"id": "49"})):
        assert encode_cli("--input", write_as(kind, tmp_path), "--output", tmp_path / f"{kind}.parquet")[0] == 0
        row = pyarrow.parquet.read_table(tmp_path / f"{kind}.parquet").drop_columns("vector").to_pylist()[-1]
        assert row == {**expected, "text": TEXTS[-1]}


KILLED = """
import os, signal, sys
from llamafactory_embed.cli import main
from llamafactory_embed.encoding import encode, vector_files
encode.WINDOW = 7
append = vector_files.UnfinishedVectors.append
def append_and_die(self, vectors):
    if self.rows == 21:
        self._file.write(b"half a row")  # not counted yet
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, vectors)
vector_files.UnfinishedVectors.append = append_and_die
main(sys.argv[1:])
"""


@pytest.mark.process
@pytest.mark.parametrize("harm", ["no JSON", "other JSON", "shorter", "no header"])
def test_a_damaged_beginning_is_named_and_not_continued(harm: str, tmp_path: Path) -> None:
    begun = UnfinishedVectors(tmp_path / "out.npy", {"model": "m"})
    begun.open((4, 3), np.dtype("float32"))
    begun.append(np.ones((2, 3), "float32"))
    begun.close()
    if harm.endswith("JSON"):
        begun.progress.write_text('{"rows": 2' if harm == "no JSON" else "[1]")
    else:
        begun.path.write_bytes(begun.path.read_bytes()[:-4] if harm == "shorter" else bytes(200))
    again = UnfinishedVectors(tmp_path / "out.npy", {"model": "m"})

    def go_on() -> None:
        again.find(start_anew=False)
        again.open((4, 3), np.dtype("float32"))

    with pytest.raises(ValueError, match=r"remove it and .* to start anew"):
        go_on()
    again.close()


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    encode_cli: Encode, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, output = tmp_path / "texts.jsonl", tmp_path / "killed.parquet"
    texts.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    words = ["encode", str(checkpoint), "--input", str(texts), "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, timeout=PATIENCE)
    assert done.returncode == -9, done.stderr.decode()
    assert not output.exists()

    code, said = encode_cli(*words[2:], "--precision", "int8", "--dimensions", 8)
    assert code == 1
    assert "`dimensions` was None, is 8; `precision` was float32, is int8; `ranges` was None" in said
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*TEXTS[:-1], "another end"]), encoding="utf-8")
    code, said = encode_cli("--input", other, "--output", output)
    assert code == 1
    assert "`input` was 50 texts" in said
    assert "--overwrite" in said

    embedded: list[str] = []
    real = Encoder.encode

    def count(self: Encoder, texts: list[str], **how: object) -> object:
        embedded.extend(texts)
        return real(self, texts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", count)
    code, said = encode_cli(*words[2:])
    assert code == 0, said
    assert "Continuing after 21 of 50" in said
    assert embedded == TEXTS[21:]
    assert encode_cli("--input", texts, "--output", tmp_path / "whole.parquet")[0] == 0
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    table = pyarrow.parquet.read_table(output)
    assert table["id"].to_pylist() == [row["id"] for row in ROWS]
    assert encode_cli("--input", texts, "--output", tmp_path / "whole.npy")[0] == 0
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), np.load(tmp_path / "whole.npy"))
    names = {"texts.jsonl", "other.txt", "killed.parquet", "whole.parquet", "whole.npy"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_other_settings_left_is_replaced_when_allowed(
    encode_cli: Encode, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, output = write_texts(tmp_path / "texts.txt"), tmp_path / "vectors.npy"

    def stop(self: Encoder, part: list[str], **how: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "_windows", stop)
        assert encode_cli("--input", texts, "--output", output)[0] == 130
    assert {path.name for path in tmp_path.iterdir()} == {
        "texts.txt", "vectors.npy.vectors.tmp", "vectors.npy.progress.json"
    }  # fmt: skip
    words = ("--input", texts, "--output", output, "--dimensions", 8)
    assert encode_cli(*words)[0] == 1
    for _ in range(2):  # the second time it replaces the finished file
        assert encode_cli(*words, "--overwrite")[0] == 0
        np.testing.assert_allclose(np.load(output), encoder.encode(TEXTS, dimensions=8), atol=1e-5)
    code, said = encode_cli(*words)
    assert code == 1
    assert "vectors.npy exists" in said


def test_vectors_that_are_no_numbers_stop_the_run(
    encode_cli: Encode, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.encode

    def overflow(self: Encoder, texts: list[str], **how: object) -> object:
        vectors = np.array(real(self, texts, **how))  # type: ignore[arg-type]
        vectors[[text == TEXTS[17] for text in texts]] = np.inf
        return vectors

    monkeypatch.setattr(Encoder, "encode", overflow)
    code, said = encode_cli("--input", write_texts(tmp_path / "texts.txt"), "--output", tmp_path / "vectors.npy")
    assert code == 1
    assert "embedding of text 18 of 50 holds nan or inf" in said
    assert not (tmp_path / "vectors.npy").exists()


@pytest.mark.process
def test_several_devices_write_what_one_writes(encode_cli: Encode, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt")
    assert encode_cli("--input", texts, "--output", tmp_path / "one.npy")[0] == 0
    code, said = encode_cli("--input", texts, "--output", tmp_path / "two.npy", "--devices", "cpu", "cpu")
    assert code == 0, said
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-5)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_from_standard_input_to_standard_output(
    kind: str, encode_cli: Encode, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(write_as(kind, tmp_path).read_bytes())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    code, said = encode_cli("--input", "-", "--output", "-", "--input-format", kind)
    assert code == 0, said
    np.testing.assert_allclose(np.load(io.BytesIO(written.getvalue())), encoder.encode(TEXTS), atol=1e-5)


BAD = [
    ("empty.txt", b"", "empty.txt has no text to embed"),
    ("header.csv", b"text\r\n", "header.csv has no text to embed"),
    (
        "blank.txt",
        b"one\n\n \nfour\n",
        "2 bad rows; repair them or set `skip_bad_rows: true`:\n  {}:2: `text` is empty",
    ),
    ("none.jsonl", b'{"title": "a"}\n', "{}:1: there is no column `text` but 'title': set `column`"),
    ("kind.jsonl", b'{"text": "a"}\n\n{"text": 3}\n', "{}:3: `text` holds a int, not a text"),
    ("half.jsonl", b'{"text": "\\ud83d"}\n', "{}:1: `text` holds half a character"),
    ("broken.jsonl", b'{"text": "a"}\n{"text":\n', "{}:2: this is not JSON"),
    ("cells.csv", b"id,text\n1,a\n2\n", "{}:3: this row has 1 cells, the header has 2"),
    ("latin.txt", "naïve\n".encode("latin-1"), "is not UTF-8 text"),
    ("table.xlsx", b"", "is of no known type"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD, ids=[each[0] for each in BAD])
def test_a_bad_input_is_told_with_file_and_line(
    name: str, content: bytes, sentence: str, encode_cli: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "load_encoder_of", lambda options: pytest.fail("a model was loaded"))
    path = tmp_path / name
    path.write_bytes(content)
    code, said = encode_cli("--input", path, "--output", tmp_path / "vectors.npy")
    assert code == 1
    assert sentence.format(path) in said
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_bad_rows_can_be_left_out(encode_cli: Encode, encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n{}\n{"text": "two"}\n', encoding="utf-8")
    code, said = encode_cli("--input", path, "--output", tmp_path / "vectors.npy", "--skip-bad-rows")
    assert code == 0, said
    assert "2 bad rows left out" in said
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), encoder.encode(["one", "two"]), atol=1e-5)


WRONG = [
    (("--output", "vectors.bin"), r"`output: vectors.bin` must end in .npy or .parquet, or be -"),
    ((), "`output` is missing"),
    (("--calibrate", "--output", "v.npy"), "`calibrate` writes ranges and no vectors"),
    (("--calibrate", "--dimensions", "8"), "every size at once: leave `dimensions` out"),
    (("--calibrate", "--precision", "int8"), "every size at once: leave `precision` out"),
    (("--calibrate",), f"{RANGES_NAME} exists; give `--overwrite`"),
    (("--output", "v.npy", "--task", "a", "--prompt", "b"), "`task` and `prompt` both give an instruction"),
    (("--output", "v.npy", "--task", "next_lin"), "did you mean `next_line`"),
    (("--output", "v.npy", "--dimensions", "9"), "`dimensions: 9` was not trained"),
    (("--output", "v.npy", "--precision", "int8", "--ranges", "none.json"), "no file of ranges none.json"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[each[1][:30] for each in WRONG])
def test_wrong_options_are_told(
    words: tuple[str, ...], sentence: str, encode_cli: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = encode_cli("--input", write_texts(tmp_path / "texts.txt"), *words)
    assert code == 1
    assert sentence in said
    assert not (tmp_path / "v.npy").exists()
