"""Test queries are found in training data, whatever the file, and everything else is left as it was."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamafactory_embed.mining.dedup import deduplicate as deduplicate_module
from llamafactory_embed.mining.dedup.deduplicate import deduplicate
from llamafactory_embed.mining.dedup.matchers import MinHashTable, _hash_pieces, jaccard, make_matchers, rows_per_band
from llamafactory_embed.mining.dedup.options import DedupOptions
from tests.data.retrieval.helpers import FOLDERS

from .helpers import read_lines, write_lines


TEST_QUERIES = [
    "what is the height of the stone bridge near the old mill",
    "北京的天气怎么样",
    "Какая погода в Москве сегодня",
    "東京の天気はどうですか",
    "ما هو ارتفاع الجسر الحجري",
]
TRAINING = [
    ("what is the height of the stone bridge near the old mill?", 0),
    ("a completely different question about copper", None),
    ("北京 的 天气，怎么样？", 1),
    ("какая погода в москве сегодня", 2),
    ("東京の天気はどうですか？", 3),
    ("ما هو ارتفاع الجسر الحجري؟", 4),
    ("上海的房子多少钱", None),
    ("?!", None),
]


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    file = tmp_path / "test.txt"
    file.write_text("\n".join([*TEST_QUERIES, "..."]), "utf-8")
    return file


@pytest.fixture
def training(tmp_path: Path) -> Path:
    rows = [
        {"query": text, "positive": f"answer {number}", "negative": ["n"], "source": {"page": number}}
        for number, (text, _) in enumerate(TRAINING)
    ]
    return write_lines(tmp_path / "train.jsonl", rows)


def options(tmp_path: Path, training: Path, *against: Path, **more: Any) -> DedupOptions:
    output = str(tmp_path / "clean.jsonl")
    return DedupOptions(data=str(training), against=[str(each) for each in against], output=output, **more)


@pytest.mark.parametrize(
    "more",
    [
        {"methods": ["simhash"]},
        {"methods": ["minhash"]},
        {"methods": ["minhash"], "minhash_pieces": "words"},
        {"methods": ["exact", "simhash"]},
    ],
    ids=["simhash", "minhash-characters", "minhash-words", "both"],
)
def test_duplicates_of_every_language_are_left_out(
    more: dict[str, Any], training: Path, test_set: Path, tmp_path: Path
) -> None:
    before = training.read_bytes()
    report = deduplicate(options(tmp_path, training, test_set, **more))
    source, kept = read_lines(training), read_lines(tmp_path / "clean.jsonl")
    assert kept == [row for row, (_, duplicate) in zip(source, TRAINING, strict=True) if duplicate is None]
    assert [(each["row"], each["test_query"]) for each in report["duplicates"]] == [
        (f"{training}:{number}", TEST_QUERIES[duplicate])
        for number, (_, duplicate) in enumerate(TRAINING, start=1)
        if duplicate is not None
    ]
    assert report["rows"] == len(source) == report["kept"] + report["dropped"]
    assert report["dropped_by_test_set"] == {str(test_set): report["dropped"]}
    assert json.loads((tmp_path / "clean.report.json").read_text("utf-8")) == report
    assert training.read_bytes() == before


def test_exact_means_case_and_space(training: Path, test_set: Path, tmp_path: Path) -> None:
    report = deduplicate(options(tmp_path, training, test_set, methods=["exact"]))
    assert [each["query"] for each in report["duplicates"]] == ["какая погода в москве сегодня"]


def test_the_distance_of_simhash(tmp_path: Path, test_set: Path) -> None:
    rows = [{"query": "what is the height of the stone bridge near the old mills", "positive": "p"}]
    training = write_lines(tmp_path / "near.jsonl", rows)
    kept = [
        deduplicate(options(tmp_path, training, test_set, simhash_distance=distance, overwrite=True))["kept"]
        for distance in (7, 8)
    ]
    assert kept == [1, 0]  # the golden case says that these two differ in 8 bits


def test_tables_and_labelled_pairs(tmp_path: Path, test_set: Path) -> None:
    table = tmp_path / "pairs.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["premise", "hypothesis", "label"], [TEST_QUERIES[0], "h", "0"], ["copper, tin", "h", "1"]])
    report = deduplicate(options(tmp_path, table, test_set))
    assert read_lines(tmp_path / "clean.jsonl") == [{"premise": "copper, tin", "hypothesis": "h", "label": "1"}]
    assert report["duplicates"][0]["row"] == f"{table}:2"


def test_sources_of_tdro_and_published_topics_can_be_compared(tmp_path: Path) -> None:
    pairs = [["wo endet die Donau", "im Meer"], ["Was ist ein Tal?", "eine Senke", "ein Berg"]]
    sets = [{"set": ["Welcher Berg raucht", "Welcher Berg ist ein Vulkan"]}, {"set": ["ein Fluss", "ein Strom"]}]
    for name, rows, kept in (
        ("pairs", pairs, [{"query": "Was ist ein Tal?", "positive": "eine Senke", "negative": "ein Berg"}]),
        ("sets", sets, sets[1:]),
    ):
        training = write_lines(tmp_path / f"{name}.jsonl", rows)
        report = deduplicate(options(tmp_path, training, FOLDERS / "miracl-v1.0-de", overwrite=True))
        assert (report["rows"], report["dropped"]) == (2, 1)
        assert read_lines(tmp_path / "clean.jsonl") == kept
        assert report["test_queries"] == {str(FOLDERS / "miracl-v1.0-de"): 3}, "the topics of both splits"
        assert report["duplicates"][0]["test_row"].startswith(str(FOLDERS / "miracl-v1.0-de/topics/topics."))


def test_several_test_sets_and_a_beir_folder(training: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": "d", "text": TRAINING[1][0]}])
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": TEST_QUERIES[0]}, {"_id": "r", "text": "unjudged"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", "utf-8")
    rows = write_lines(tmp_path / "rows.jsonl", [{"question": "UNJUDGED", "answer": "a"}])
    other = write_lines(tmp_path / "other.jsonl", [{"query": TEST_QUERIES[1], "positive": TEST_QUERIES[2]}])
    report = deduplicate(options(tmp_path, training, folder, other))
    assert report["dropped_by_test_set"] == {str(folder): 1, str(other): 1}  # queries only, no passages
    assert report["test_queries"] == {str(folder): 2, str(other): 1}
    assert deduplicate(options(tmp_path, rows, folder, overwrite=True))["dropped"] == 1


def test_an_entry_of_dataset_info(training: Path, test_set: Path, tmp_path: Path) -> None:
    entries = {
        "train": {"file_name": training.name, "formatting": "retrieval", "columns": {"query": "positive",
                                                                                    "positive": "query"}},
        "held_out": {"file_name": test_set.name, "formatting": "retrieval"},
    }  # fmt: skip
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), "utf-8")
    (tmp_path / "test.txt").write_text("answer 3\n", "utf-8")
    output = str(tmp_path / "clean.jsonl")
    by_name = DedupOptions(
        data="train", against=["held_out"], output=output, dataset_dir=str(tmp_path), methods=["exact"]
    )
    assert [each["query"] for each in deduplicate(by_name)["duplicates"]] == ["answer 3"]


def test_bad_rows_leave_no_output(training: Path, test_set: Path, tmp_path: Path) -> None:
    with open(training, "a", encoding="utf-8") as file:
        file.write('{"query": "", "positive": "p"}\n')
    with pytest.raises(ValueError, match=rf"train\.jsonl:{len(TRAINING) + 1}: `query` is empty"):
        deduplicate(options(tmp_path, training, test_set))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.txt", "train.jsonl"]
    assert deduplicate(options(tmp_path, training, test_set, skip_bad_rows=True))["rows"] == len(TRAINING)


def test_minhash_finds_what_is_similar_enough() -> None:
    rng = random.Random(0)
    sets = [frozenset(f"{number}-{rng.randrange(40)}" for _ in range(60)) for number in range(40)]
    table = MinHashTable(0.6)
    for each in sets:
        table.add(each)
    found = missed = 0
    for number, each in enumerate(sets):
        for removed in (1, 3, 6, 9, 12, 15):
            changed = frozenset(sorted(each)[removed:]) | {f"new {each}"}
            similarity = jaccard(changed, each)
            matches = {place: nearness for nearness, place in table.find(changed)}
            assert all(nearness == jaccard(changed, sets[place]) >= 0.6 for place, nearness in matches.items())
            if similarity >= 0.6:
                found += number in matches
                missed += number not in matches
    assert found > 100
    assert missed == 0


def test_hashes_estimate_the_similarity() -> None:
    """The share of equal minima is the similarity: their spread is that of 128 draws."""
    common, own = [f"c{number}" for number in range(60)], [f"o{number}" for number in range(40)]
    table = MinHashTable(1.0)
    table._rows = 1
    one, other = (table._keys(_hash_pieces(frozenset(each))) for each in (common + own[:20], common + own[20:]))
    share = np.mean([a == b for a, b in zip(one, other, strict=True)])
    assert share == pytest.approx(0.6, abs=4 * (0.6 * 0.4 / 128) ** 0.5)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_bands_miss_one_pair_in_a_thousand_at_most(threshold: float) -> None:
    rows = rows_per_band(threshold)
    assert (1 - threshold**rows) ** (128 // rows) <= 1e-3 or rows == 1
    assert (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) > 1e-3


def test_the_first_method_that_finds_is_told(tmp_path: Path) -> None:
    methods = ["exact", "minhash", "simhash"]
    assert list(make_matchers(DedupOptions(data="d", against=["t"], output="o.jsonl", methods=methods))) == methods


def sentences() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"data": "nowhere"}, r"`data`: there is no file or folder `nowhere`, and `dataset_dir: \S+` holds no"),
        ({"against": ["nowhere"]}, r"`against`: there is no file or folder `nowhere`"),
        ({"output": "out.csv"}, r"`output`: 'out.csv' must end in .jsonl"),
        (
            {"output": "train.jsonl", "overwrite": True},
            r"`output`: \S+ is the data itself, which is never overwritten",
        ),
        ({"output": "there.jsonl"}, r"`output`: \S+ exists; name another file, or allow it with `overwrite`"),
        ({"methods": ["simhsh"]}, r"`methods`: 'simhsh' is not one of simhash, minhash, exact"),
        ({"against": ["empty.txt"]}, r"`against`: `empty.txt` has no queries"),
        ({"data": "beir"}, r"`data`: \S+ is a BEIR folder"),
        ({"data": "folder"}, r"`data`: the folder `folder` holds neither data files nor a BEIR collection"),
        ({"data": "file.xyz"}, r"`file.xyz` is of no known type"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), sentences(), ids=lambda value: str(value)[:30])
def test_wrong_options(
    wrong: dict[str, Any], sentence: str, training: Path, test_set: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("empty.txt", "there.jsonl", "file.xyz"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / "beir" / name).touch()
    before = training.read_bytes()
    values: dict[str, Any] = {"data": "train.jsonl", "against": ["test.txt"], "output": "new.jsonl"} | wrong
    with pytest.raises(ValueError, match=sentence) as caught:
        deduplicate(DedupOptions(**values, dataset_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert training.read_bytes() == before
    assert not (tmp_path / "new.jsonl").exists()


def test_columns_of_a_table_that_json_does_not_know(tmp_path: Path, test_set: Path) -> None:
    moment = datetime.datetime(2020, 2, 29, 12, 30, 0, 250_000)
    columns: dict[str, list[Any]] = {
        "query": ["who was he", TEST_QUERIES[0], "when was it"],
        "positive": ["a", "b", "c"],
        "day": [datetime.date(2020, 2, 29), None, datetime.date(1, 1, 1)],
        "moment": [moment, moment, None],
        "moment_in_utc": [moment.replace(tzinfo=datetime.UTC)] * 3,
        "time": [moment.time()] * 3,
        "price": [decimal.Decimal("1.10")] * 3,
        "image": [b"\x00\xff", b"", None],
        "history": [[{"day": datetime.date(2021, 1, 1), "prices": [decimal.Decimal("0.50"), None]}], [], None],
        "number": [1, 2, 3],
        "share": [0.1, 0.2, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    report = deduplicate(options(tmp_path, tmp_path / "table.parquet", test_set))
    assert report["dropped"] == 1
    first, last = read_lines(tmp_path / "clean.jsonl")
    assert first == {
        "query": "who was he",
        "positive": "a",
        "day": "2020-02-29",
        "moment": "2020-02-29T12:30:00.250000",
        "moment_in_utc": "2020-02-29T12:30:00.250000+00:00",
        "time": "12:30:00.250000",
        "price": "1.10",
        "image": "AP8=",
        "history": [{"day": "2021-01-01", "prices": ["0.50", None]}],
        "number": 1,
        "share": 0.1,
    }
    assert list(last) == list(columns)
    assert (last["day"], last["moment"], last["image"], last["history"], last["share"]) == (
        "0001-01-01", None, None, None, None,
    )  # fmt: skip


def test_a_column_that_cannot_be_written_is_named(
    tmp_path: Path, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the images of a data set."""
    data = write_lines(tmp_path / "train.jsonl", [{"query": "copper", "positive": "p"}])
    record = {"query": "copper", "positive": "p", "image": {"thumbnail": object()}}
    monkeypatch.setattr(deduplicate_module, "records_of_entry", lambda *a, **k: iter([("shown", 3, record)]))
    monkeypatch.setattr(deduplicate_module, "read_test_queries", lambda options: [])
    with pytest.raises(ValueError, match=r"shown:3: column `image` holds a value of type object, which JSON cannot"):
        deduplicate(options(tmp_path, data, test_set))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("clean")]
