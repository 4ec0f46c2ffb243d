"""Every shape of retrieval data, read from a small file and compared with what the file says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_embed.data.problems import BadRowError
from llamafactory_embed.data.retrieval.formats import find_layout
from llamafactory_embed.data.retrieval.rows import Row
from tests.data.retrieval.helpers import FILES, json_lines, read_task, without_place


def table(name: str, delimiter: str = ",") -> list[dict[str, str]]:
    with open(FILES / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def texts(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def test_triples_hold_strings_or_lists() -> None:
    records = json_lines("triples.jsonl")
    assert any(isinstance(record["positive"], list) for record in records), "the file should show both"
    assert any(isinstance(record["positive"], str) for record in records), "the file should show both"
    for row, record in zip(read_task("triples.jsonl").rows, records, strict=True):
        assert (row.query, row.positives, row.negatives) == (
            record["query"],
            texts(record["positive"]),
            texts(record["negative"]),
        )


def test_pairs_have_no_negatives() -> None:
    rows = read_task("pairs.jsonl").rows
    assert [(row.query, *row.positives) for row in rows] == [tuple(r.values()) for r in json_lines("pairs.jsonl")]
    assert all(row.negatives == () and row.scores is None for row in rows)


def test_numbered_negatives_are_taken_in_order_and_empty_cells_left_out() -> None:
    rows = read_task("numbered_negatives.tsv").rows
    for row, record in zip(rows, table("numbered_negatives.tsv", "\t"), strict=True):
        assert row.query == record["anchor"]
        assert row.negatives == tuple(record[f"negative_{n}"] for n in (1, 2, 3) if record[f"negative_{n}"])
    assert {len(row.negatives) for row in rows} == {1, 3}


def test_ten_numbered_negatives_are_in_the_order_of_their_numbers() -> None:
    columns = ("anchor", "positive", *(f"negative_{number}" for number in (10, 9, 2, 1)))
    assert find_layout(columns, ()).numbered_negatives == ("negative_1", "negative_2", "negative_9", "negative_10")


@pytest.mark.parametrize("name", ["nli_numbers.csv", "nli_words.jsonl"])
def test_inference_pairs_are_grouped_by_premise(name: str) -> None:
    records = table(name) if name.endswith("csv") else json_lines(name)
    meaning = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    labels = [meaning.get(str(record["label"]), record["label"]) for record in records]

    def hypotheses(premise: str, label: str) -> tuple[str, ...]:
        pairs = zip(records, labels, strict=True)
        return tuple(r["hypothesis"] for r, found in pairs if r["premise"] == premise and found == label)

    entailing = [r["premise"] for r, label in zip(records, labels, strict=True) if label == "entailment"]
    rows = read_task(name).rows
    assert [row.query for row in rows] == list(dict.fromkeys(entailing))
    for row in rows:
        assert row.positives == hypotheses(row.query, "entailment")
        assert row.negatives == hypotheses(row.query, "contradiction")


def test_scored_pairs_keep_their_score() -> None:
    for row, record in zip(read_task("scored_pairs.csv").rows, table("scored_pairs.csv"), strict=True):
        assert (row.query, row.positives, row.negatives) == (record["sentence1"], (record["sentence2"],), ())
        assert row.scores == (float(record["score"]),)


def test_tdro_rows_join_title_and_text_and_keep_teacher_scores() -> None:
    for row, record in zip(read_task("tdro.jsonl").rows, json_lines("tdro.jsonl"), strict=True):
        passages = record["positive_passages"] + record["negative_passages"]
        assert row.positives + row.negatives == tuple(f"{p['title']} {p['text']}" for p in passages)
        assert row.scores == tuple(p["ce_score"] for p in passages)
        assert len(row.positives) == len(record["positive_passages"])


def test_msmarco_with_instructions_puts_generated_negatives_first() -> None:
    counts = []
    for row, record in zip(
        read_task("msmarco_w_instructions.jsonl").rows, json_lines("msmarco_w_instructions.jsonl"), strict=True
    ):
        generated = [f" {passage['text']}" for passage in record["new_negatives"]]
        mined = [f" {passage['text']}" for passage in record["negative_passages"]]
        assert row.leading_negatives == min(3, len(generated))
        assert list(row.negatives[: row.leading_negatives]) == generated[:3]
        assert sorted(row.negatives) == sorted(generated + mined)
        counts.append(len(generated))
    assert 0 in counts
    assert max(counts) > 3, "the file should show a row with more generated negatives than are taken first"


def test_e5_instructions_are_used_in_turn_by_the_number_of_the_row() -> None:
    first, second = "Retrieve what follows", "Retrieve the same"
    rows = read_task("e5_allnli.jsonl", instruction=[first, second]).rows
    assert [row.instruction for row in rows] == [first, second, first, second, first]


def test_instruction_and_text_in_one_list_are_told_apart() -> None:
    records = json_lines("reasonir_vl.jsonl")
    rows = read_task("reasonir_vl.jsonl", instruction="of the entry").rows
    assert [row.query for row in rows] == [record["query"][1] for record in records]
    assert [row.positives for row in rows] == [tuple(text for _, text in record["pos"]) for record in records]
    assert [row.negatives for row in rows] == [tuple(text for _, text in record["neg"]) for record in records]
    told = "Given this reasoning-intensive query, find relevant documents that could help answer the question"
    assert [row.instruction for row in rows] == [told, None], "no instruction in the row: that of the entry holds"


def test_arrays_are_pairs_and_triplets() -> None:
    rows = read_task("pairs_without_names.jsonl").rows
    assert without_place(rows) == [
        ("a young domestic cat", ("kitten",), (), None, None),
        ("a small house of a dog", ("kennel",), ("street",), None, None),
    ]


def test_the_first_text_of_a_set_asks_for_the_others() -> None:
    for row, record in zip(read_task("sets.jsonl").rows, json_lines("sets.jsonl"), strict=True):
        assert [row.query, *row.positives] == record["set"]
        assert row.negatives == ()


def test_the_unprocessed_files_of_tdro_have_their_query_in_text() -> None:
    rows = read_task("tdro_unprocessed.jsonl").rows
    assert without_place(rows) == [
        ("a young domestic cat", ("Kitten A kitten is a young cat.",), (" Dogs bark.",), None, None),
        ("a dwelling", ("A house is a dwelling.",), (), None, None),
    ]


@pytest.mark.parametrize("name", ["sentences.txt", "sentences.jsonl"])
def test_plain_texts_are_their_own_positives(name: str) -> None:
    content = (FILES / name).read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["sentence"] for line in content] if name.endswith("jsonl") else content
    rows = read_task(name).rows
    assert [row.query for row in rows] == [sentence for sentence in sentences if sentence]
    assert all(row.positives == (row.query,) for row in rows)


def test_columns_can_be_named(tmp_path: Path) -> None:
    names = {"query": "sent0", "positive": "sent1", "negative": "hard_neg", "instruction": "how", "score": "teacher"}
    record = {"sent0": "a", "sent1": "b", "hard_neg": ["c", "d"], "how": "find", "teacher": [3, 2, 1], "query": "no"}
    (tmp_path / "named.jsonl").write_text(json.dumps(record))
    (row,) = read_task("named.jsonl", tmp_path, columns=names).rows
    assert without_place([row]) == [("a", ("b",), ("c", "d"), (3.0, 2.0, 1.0), "find")]


def test_a_named_column_that_is_absent_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "named.jsonl").write_text('{"query": "a", "positive": "b"}')
    with pytest.raises(
        ValueError, match=r"named\.jsonl:1: there is no column `sent0`, which `columns` names as `query`"
    ):
        read_task("named.jsonl", tmp_path, columns={"query": "sent0"})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"query": "a", "positive": None}, "`positive` is missing"),
        ({"query": " ", "positive": "b"}, "`query` is empty"),
        ({"query": "a", "positive": ["b", ""]}, "`positive` is empty"),
        ({"query": ["a"], "positive": "b"}, "`query` must be text, not a list"),
        ({"query": "a", "positive": "b", "negative": [1]}, "`negative` must be text, not the number 1"),
        ({"query": "a", "positive": "b", "negative": "c", "score": 1}, "`score` has 1 numbers for 2 passages"),
        ({"query": "a", "positive": "b", "score": "high"}, "`score` must be a number, not 'high'"),
        ({"query": "a", "positive": "b", "score": float("nan")}, "`score` must be a number, not nan"),
        ({"query": "a", "positive": "b", "negatve": "c"}, "`negatve` is not known, is it a misspelt `negative`"),
        ({"query": "a", "postive": "b"}, "no column `positive` \\(is `postive` a misspelt `positive`\\?\\)"),
        ({"qurey": "a", "positive": "b"}, "no column `query` \\(is `qurey` a misspelt `query`\\?\\)"),
        ({"premise": "a", "hypothesis": "b", "label": 5}, "`label` must be entailment, neutral or contradiction"),
        ({"query": "a", "positive_passages": []}, "`positive_passages` is empty"),
        ({"query": "a", "positive_passages": [{"docid": "1"}]}, "must be text or have a `text`"),
        ({"positive_passages": ["b"]}, "no column `query`"),
        ({"text": 5}, "`text` must be text, not the number 5"),
        ({"query": ["find", ""], "positive": "b"}, "`query` is empty"),
        ({"query": ["find", 1], "positive": "b"}, "`query` must be text, not a list"),
        ({"query": "a", "pos": [["find", "b"]]}, "a passage of `pos` has the instruction 'find'; only queries may"),
        ({"query": "a", "pos": [["", "b", "c"]]}, "`pos` must be text, not a list"),
        ({"query": "a", "pos": [["", " "]]}, "`pos` is empty"),
        ({"set": ["a"]}, "`set` must be a list of at least two texts"),
        ({"set": "ab"}, "`set` must be a list of at least two texts"),
        ({"set": ["a", " "]}, "`set` is empty"),
        (["a"], "neither a JSON object with columns nor an array of two or three texts"),
        (["a", 1], "neither a JSON object with columns nor an array of two or three texts"),
        (["a", " "], "`positive` is empty"),
        (
            {"query": "a", "positive_ids": ["1"]},
            "no column `positive` \\(`positive_ids` holds ids: name their texts with `corpus` in the data set's entry",
        ),
        ({"query_id": "a", "positive": "b"}, "no column `query` \\(`query_id` holds ids: .* with `queries`"),
    ],
)
def test_bad_rows_say_what_is_wrong(tmp_path: Path, record: Any, problem: str) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"bad\.jsonl:1: .*{problem}"):
        read_task("bad.jsonl", tmp_path)


def test_a_score_for_some_passages_only_is_refused() -> None:
    from llamafactory_embed.data.retrieval.formats import parse_record

    record = {
        "query": "a",
        "positive_passages": [{"text": "b", "ce_score": 1.0}],
        "negative_passages": [{"text": "c"}],
    }
    with pytest.raises(BadRowError, match="`ce_score` is given for some passages"):
        parse_record(record, {}, "f", 1)


def test_passages_of_older_arrow_files_are_a_struct_of_lists() -> None:
    from llamafactory_embed.data.retrieval.formats import parse_record

    as_lists = {"query": "a", "positive_passages": {"title": ["t", ""], "text": ["b", "c"]}}
    as_structs = {"query": "a", "positive_passages": [{"title": "t", "text": "b"}, {"title": "", "text": "c"}]}
    row = parse_record(as_lists, {}, "f", 1)
    assert isinstance(row, Row)
    assert row == parse_record(as_structs, {}, "f", 1)
    assert row.positives == ("t b", " c")
