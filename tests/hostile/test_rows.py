"""Rows of data from files of every kind: bytes that are no text, lines without end, archives of anything."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_embed.data import files
from llamafactory_embed.data.problems import BadRows
from llamafactory_embed.data.retrieval.beir import Collection
from llamafactory_embed.data.retrieval.entries import find_entries, make_entry
from llamafactory_embed.data.retrieval.reader import rows_of_entry
from llamafactory_embed.data.retrieval.texts import read_texts
from llamafactory_embed.data.retrieval.weights import read_weights, task_shares
from llamafactory_embed.data.words.reader import load_sentences
from llamafactory_embed.encoding.texts import read_lines
from tests.hostile.strategies import DEEP_JSON, bad_bytes, changed, cut, flipped, json_files, texts, values
from tests.hostile.verdict import a_result_or_a_sentence, hostile


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Thousands of warnings would be most of what these tests do."""
    logger = logging.getLogger("llamafactory_embed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


record_lines = st.lists(
    st.dictionaries(st.sampled_from(["query", "positive", "text", "_id"]), values, max_size=4).map(json.dumps)
    | st.sampled_from(DEEP_JSON[:3])
    | texts,
    max_size=4,
)
cells = st.sampled_from(['"', '""', ",", "\t", "\n", "\r", "\r\n", "\0", "query", "positive", "a", "\ufeff", ";", "'"])
tables = st.lists(cells, max_size=30).map("".join)
tagged = st.lists(
    st.sampled_from(["a O\n", "b\tB-X\n", "\n", "\r\n", "1 a", "-DOCSTART-\n", "# x\n", "\0 O\n", "\x85"]), max_size=12
)
contents = (
    st.tuples(
        st.sampled_from(["\n", "\r\n", "\r", "\n\n"]), st.sampled_from(["", "\ufeff", "[", "[\n"]), record_lines
    ).map(lambda parts: (parts[1] + parts[0].join(parts[2])).encode("utf-8", "surrogatepass"))
    | tables.map(str.encode)
    | tagged.map(lambda lines: "".join(lines).encode())
    | bad_bytes
)
packed = contents.map(gzip.compress)
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".conll", ".conllu", ".parquet", ".arrow")


@hostile(25)
@given(contents | packed | cut(packed), st.sampled_from(ENDINGS), st.booleans())
def test_files_of_rows(content: bytes, ending: str, is_packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows" + ending + ".gz" * is_packed)
        path.write_bytes(content)
        entry = {"file_name": path.name, "formatting": "retrieval"}
        words = {"file_name": path.name, "formatting": "words", "column_names": ["word", "ner"]}
        Path(folder, "dataset_info.json").write_text(json.dumps({"rows": words}))
        with a_result_or_a_sentence("rows"):
            bad_rows = BadRows()
            list(rows_of_entry(make_entry("rows", entry, folder), bad_rows))
            bad_rows.finish()
        with a_result_or_a_sentence("texts"):
            list(read_texts(str(path)))
        with a_result_or_a_sentence("lines"):
            list(files.explain_damage(read_lines(str(path), path.name), path.name))
        with a_result_or_a_sentence("words"):
            load_sentences("rows", folder, "ner")


judgements = (
    st.lists(st.lists(st.sampled_from(["q", "d", "1", '"', "1e999"]) | texts, max_size=5).map("\t".join), max_size=4)
    .map(lambda lines: "\n".join(["query-id\tcorpus-id\tscore", *lines]).encode("utf-8", "surrogatepass"))
)  # fmt: skip
texts_with_ids = st.lists(
    st.fixed_dictionaries(
        {}, optional={"_id": values | st.sampled_from(["q", "d"]), "text": texts | values, "title": values}
    ),
    max_size=3,
).map(lambda records: "\n".join(map(json.dumps, records)).encode())


@hostile(25)
@given(texts_with_ids | bad_bytes, texts_with_ids | bad_bytes, judgements | bad_bytes)
def test_collections(corpus: bytes, queries: bytes, qrels: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "corpus.jsonl").write_bytes(corpus)
        Path(folder, "queries.jsonl").write_bytes(queries)
        Path(folder, "qrels").mkdir()
        Path(folder, "qrels", "test.tsv").write_bytes(qrels)
        with a_result_or_a_sentence("BEIR"):
            bad_rows = BadRows()
            collection = Collection(folder, None, bad_rows)
            collection.read_passages()
            list(collection.queries())
            bad_rows.finish()


ENTRY = {
    "file_name": "rows.jsonl", "formatting": "retrieval", "columns": {"query": "q"}, "task": "t", "instruction": "i",
    "corpus": {"file_name": "x", "columns": {"id": "i"}}, "objective": {"loss": "infonce"}, "num_samples": 3,
    "teacher_vectors": "x.npy", "split": "train", "symmetric": True,
}  # fmt: skip


@hostile(25)
@given(json_files(st.fixed_dictionaries({"rows": changed(ENTRY)})))
def test_registries(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dataset_info.json").write_bytes(content)
        Path(folder, "rows.jsonl").write_text('{"query": "a", "positive": "b"}\n')
        with a_result_or_a_sentence("dataset_info.json", "llamafactory"):
            bad_rows = BadRows()
            for entry in find_entries("rows", folder):
                if not entry.on_hub:
                    list(rows_of_entry(entry, bad_rows))
            bad_rows.finish()


WORD_ENTRY = {
    "file_name": "words.conll", "formatting": "words", "column_names": ["word", "tag"], "columns": {"labels": "tag"},
    "split": "train",
}  # fmt: skip


@hostile(25)
@given(json_files(st.fixed_dictionaries({"words": changed(WORD_ENTRY)})))
def test_registries_of_words(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dataset_info.json").write_bytes(content)
        Path(folder, "words.conll").write_text("a O\nb B-X\n")
        with a_result_or_a_sentence("dataset_info.json", "llamafactory"):
            load_sentences("words", folder, "tag")


@hostile(25)
@given(json_files(st.dictionaries(st.sampled_from(["a", "b", "domain_weights"]), values, max_size=3)))
def test_weights_of_tasks(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "weights.json").write_bytes(content)
        with a_result_or_a_sentence("weights of tasks"):
            task_shares(read_weights(f"{folder}/weights.json"), ["a", "b"], [1, 2])


def read_all(path: Path) -> None:
    """Everything in a file, by the reader that it is for."""
    if "conll" in path.name:
        load_sentences("rows", str(path.parent), "ner")
    elif path.suffix == ".tsv":
        list(read_texts(str(path)))
    else:
        list(files.read_records(str(path)))


@pytest.mark.parametrize(
    "name", ["rows.jsonl.gz", "rows.txt.gz", "rows.csv.gz", "rows.json.gz", "rows.conll.gz", "rows.tsv"]
)
def test_what_unpacks_to_a_line_without_end_stops_at_the_limit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 MB of one character are 32 kB packed; in a table, a row goes on over lines while its quotes are open."""
    monkeypatch.setattr(files, "LONGEST_ROW", 100_000)
    monkeypatch.setattr(files, "LARGEST_ARRAY", 100_000)
    unit = '"a\n",' if "csv" in name else "a O\n" if "conll" in name else "a"
    content = ("[" * (".json." in name) + unit * (2**25 // len(unit))).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    info = {"rows": {"file_name": name, "formatting": "words", "column_names": ["word", "ner"]}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    del content
    tracemalloc.start()
    with pytest.raises(ValueError, match="longer than 100,000 characters"):
        read_all(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_damaged_tables(ending: str, tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa

    path = tmp_path / f"rows{ending}"
    table = pa.table({"query": ["a", "b"], "positive": ["c", "d"]})
    if ending == ".parquet":
        datasets.Dataset(table).to_parquet(str(path))
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    content = path.read_bytes()
    assert len(list(files.read_records(str(path)))) == 2

    @hostile(40)
    @given(flipped(content))
    def read(changed_content: bytes) -> None:
        changed_path = tmp_path / f"changed{ending}"
        changed_path.write_bytes(changed_content)
        with a_result_or_a_sentence(f"damaged {ending}"):
            list(files.read_records(str(changed_path)))

    read()
