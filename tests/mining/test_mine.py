"""Mining as a whole, compared with looking at every passage by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed import Encoder
from llamafactory_embed.data.retrieval.formats import parse_record
from llamafactory_embed.data.retrieval.reader import load_tasks
from llamafactory_embed.data.retrieval.rows import Row
from llamafactory_embed.mining.mine import mine
from llamafactory_embed.mining.options import MiningOptions

from .conftest import INSTRUCTION
from .helpers import as_list, mined, own_corpus, ranked, read_lines, write_lines


pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def rows(verbs: Path) -> list[dict[str, Any]]:
    return read_lines(verbs / "verbs.jsonl")


@pytest.fixture(scope="module")
def corpus(rows: list[dict[str, Any]]) -> list[str]:
    return own_corpus(rows)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder(checkpoint)


def expected_negatives(
    rows: list[dict[str, Any]],
    similarities: np.ndarray,
    rankings: np.ndarray,
    corpus: list[str],
    first: int,
    last: int,
    number: int,
) -> list[list[str]]:
    """The first so many of a window, without each row's positives and its own query."""
    folded = [text.casefold() for text in corpus]
    found = []
    for row, ranking in zip(rows, rankings, strict=True):
        answers = {text.casefold() for text in [*as_list(row["positive"]), row["query"]]}
        found.append([corpus[place] for place in ranking[first:last] if folded[place] not in answers][:number])
    return found


def test_negatives_are_those_of_the_whole_ranking(
    checkpoint: Path, verbs: Path, rows: list[dict[str, Any]], corpus: list[str], encoder: Encoder, tmp_path: Path
) -> None:
    found = mined(tmp_path, model=checkpoint, data="verbs", dataset_dir=verbs, sampling="first")
    queries = encoder.encode([row["query"] for row in rows], prompt=INSTRUCTION)
    similarities, rankings = ranked(queries, encoder.encode(corpus))
    expected = expected_negatives(rows, similarities, rankings, corpus, 2, 20, 4)
    assert [row["negative"] for row in found] == expected
    assert [row["query"] for row in found] == [row["query"] for row in rows]
    assert [as_list(row["positive"]) for row in found] == [as_list(row["positive"]) for row in rows]
    assert all("score" not in row for row in found)
    assert not (tmp_path / "mined.jsonl.work").exists()
    # The instruction matters, so that it was used where it should be.
    plain = encoder.encode([row["query"] for row in rows], prompt="", role="query")
    assert expected_negatives(rows, *ranked(plain, encoder.encode(corpus)), corpus, 2, 20, 4) != expected


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_small_vectors_find_the_same_when_all_are_ranked(
    precision: str, checkpoint: Path, verbs: Path, tmp_path: Path
) -> None:
    settings = {"model": checkpoint, "data": "verbs", "dataset_dir": verbs, "sampling": "first"}
    small = mined(tmp_path, precision, precision=precision, rescore_multiplier=1000, **settings)
    assert small == mined(tmp_path, **settings)


def test_a_sample_is_seeded_and_of_the_window(checkpoint: Path, verbs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": checkpoint, "data": "verbs", "dataset_dir": verbs}
    everything = mined(tmp_path, "all", **options, num_negatives=100)
    first = mined(tmp_path, "first", **options)
    assert mined(tmp_path, "again", **options) == first
    assert mined(tmp_path, "chunks", **options, chunk_size=7) == first
    other = mined(tmp_path, "other", **options, seed=1)
    assert other != first
    for sampled, window in zip(first, everything, strict=True):
        places = [window["negative"].index(text) for text in sampled["negative"]]
        assert places == sorted(set(places))
        assert len(places) == min(4, len(window["negative"]))
    assert any(row["negative"] != window["negative"][:4] for row, window in zip(first, everything, strict=True))


def test_margins(
    checkpoint: Path, verbs: Path, rows: list[dict[str, Any]], corpus: list[str], encoder: Encoder, tmp_path: Path
) -> None:
    queries = encoder.encode([row["query"] for row in rows], prompt=INSTRUCTION)
    similarities, rankings = ranked(queries, encoder.encode(corpus))
    positions = {text.casefold(): place for place, text in enumerate(corpus)}

    def positive(row: int) -> float:
        return min(similarities[row, positions[text.casefold()]] for text in as_list(rows[row]["positive"]))

    limits = {
        "absolute_margin": (0.02, lambda score: score - 0.02),
        "relative_margin": (0.03, lambda score: score - 0.03 * abs(score)),
    }
    options: dict[str, Any] = {"model": checkpoint, "data": "verbs", "dataset_dir": verbs, "ranks": "0:200"}
    for name, (margin, limit) in limits.items():
        found = {
            row["query"]: row["negative"]
            for row in mined(tmp_path, name, **options, num_negatives=500, **{name: margin})
        }
        removed = 0
        for number, row in enumerate(rows):
            answers = {text.casefold() for text in [*as_list(row["positive"]), row["query"]]}
            ranking = [place for place in rankings[number][:200] if corpus[place].casefold() not in answers]
            expected = [corpus[p] for p in ranking if similarities[number, p] <= limit(positive(number))]
            removed += len(ranking) - len(expected)
            assert found.get(row["query"], []) == expected
        assert removed > 0
        summary = json.loads((tmp_path / f"{name}.summary.json").read_text("utf-8"))
        assert summary["candidates dropped"]["too close to the positive's score"] == removed


def test_near_duplicates_of_a_positive_are_dropped(checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        {"query": "a great river", "positive": "the Amazon is a great river", "negative": ["a lake", "a small brook"]},
        {"query": "a city", "positive": "Paris is a city", "negative": ["the Amazon is a great river.", "a  LAKE"]},
    ]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"model": checkpoint, "data": data, "ranks": "0:10", "num_negatives": 10}
    plain = mined(tmp_path, "plain", **options)
    assert "the Amazon is a great river." in plain[0]["negative"]
    assert plain[0]["negative"].count("a lake") == 1, "texts that differ in case and space are one passage"
    assert "a  LAKE" not in plain[0]["negative"]
    encoder = Encoder(checkpoint)
    passages = own_corpus(rows)
    similarities = encoder.encode(passages) @ encoder.encode(rows[0]["positive"])
    limit = float(sorted(similarities)[-2] + sorted(similarities)[-3]) / 2  # between the copy and the next
    near = mined(tmp_path, "near", **options, near_duplicate_similarity=limit)
    nearest = passages[int(np.argsort(similarities)[-2])]
    assert sorted(near[0]["negative"]) == sorted(set(plain[0]["negative"]) - {nearest})


def test_scores_of_a_cross_encoder(
    checkpoint: Path, cross_encoder: Path, verbs: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder
    from torch import nn

    options: dict[str, Any] = {"model": checkpoint, "data": "verbs", "dataset_dir": verbs}
    plain = mined(tmp_path, "plain", **options)
    scored = mined(tmp_path, "scored", **options, cross_encoder=cross_encoder)
    teacher = CrossEncoder(str(cross_encoder), device="cpu")
    for row, same in zip(scored, plain, strict=True):
        assert row["negative"] == same["negative"]
        pairs = [(row["query"], text) for text in [*as_list(row["positive"]), *row["negative"]]]
        np.testing.assert_allclose(row["score"], teacher.predict(pairs, activation_fn=nn.Identity()), atol=1e-4)
    assert np.std([score for row in scored for score in row["score"]]) > 0.01
    # The layout is the one that distillation reads.
    (task,) = load_tasks(["scored"], write_info(tmp_path, "scored.jsonl"), num_negatives=2)
    assert all(isinstance(each, Row) and each.scores is not None for each in task.rows)
    assert [list(each.scores or ()) for each in task.rows] == [row["score"] for row in scored]

    # Margins go by the cross-encoder's scores.
    strict = mined(tmp_path, "strict", **options, cross_encoder=cross_encoder, absolute_margin=0.0, num_negatives=100)
    everything = {row["query"]: row for row in mined(tmp_path, "all", **options, num_negatives=100)}
    assert strict
    for row in strict:
        positives = len(as_list(row["positive"]))
        assert max(row["score"][positives:]) <= min(row["score"][:positives])
        kept = len(row["score"]) - positives
        others = [text for text in everything[row["query"]]["negative"] if text not in row["negative"]]
        if others:
            left_out = teacher.predict([(row["query"], text) for text in others], activation_fn=nn.Identity())
            assert min(left_out) > min(row["score"][:positives]) - 1e-4
        assert kept == len(row["negative"])


def write_info(folder: Path, file: str) -> str:
    entry = {"file_name": file, "formatting": "retrieval"}
    (folder / "dataset_info.json").write_text(json.dumps({Path(file).stem: entry}), "utf-8")
    return str(folder)


def test_the_layout_of_tdro(checkpoint: Path, cross_encoder: Path, tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "data" / "files" / "tdro.jsonl"
    options: dict[str, Any] = {"model": checkpoint, "data": file, "ranks": "0:10", "cross_encoder": cross_encoder}
    ours = mined(tmp_path, "ours", **options)
    theirs = mined(tmp_path, "theirs", **options, format="tdro")
    assert len(theirs) == len(read_lines(file))
    for number, (one, other, source) in enumerate(zip(ours, theirs, read_lines(file), strict=True)):
        assert set(other) == {"query", "positive_passages", "negative_passages"}
        passages = [*other["positive_passages"], *other["negative_passages"]]
        assert all(set(passage) == {"docid", "text", "ce_score"} for passage in passages)
        rows = [parse_record(each, {}, "mined", number) for each in (one, other)]
        assert [(row.query, row.positives, row.negatives, row.scores) for row in rows[:1]] == [
            (row.query, row.positives, row.negatives, row.scores) for row in rows[1:]
        ]
        expected = parse_record(source, {}, "source", number)
        assert rows[0].positives == expected.positives
        assert rows[0].query == expected.query


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A BEIR folder with two passages of the same id-less text, and a positive under another text."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": f"d{number}", "title": "Line" if number % 2 else "", "text": text} for number, text in
         enumerate(["the stone bridge", "the old mill", "a river in spring", "copper", "the miller", "wooden rails"])],
    )  # fmt: skip
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": "which bridge"}, {"_id": "q2", "text": "which mill"}])
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td1\t1\nq2\td4\t1\nq1\td2\t0\n", "utf-8"
    )
    return folder


def test_a_beir_folder(checkpoint: Path, beir: Path, tmp_path: Path) -> None:
    found = mined(tmp_path, model=checkpoint, data=beir, ranks="0:6", num_negatives=6)
    assert [(row["query"], row["positive"]) for row in found] == [
        ("which bridge", "the stone bridge"),
        ("which mill", ["Line the old mill", "the miller"]),
    ]
    everything = {"the stone bridge", "Line the old mill", "a river in spring", "Line copper", "the miller",
                  "Line wooden rails"}  # fmt: skip
    for row in found:
        assert set(row["negative"]) == everything - set(as_list(row["positive"]))


def test_positives_are_known_by_their_id(checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_lines(
        tmp_path / "corpus.jsonl",
        [{"docid": "7", "text": "the old mill, revised edition"}, {"docid": "8", "text": "copper"},
         {"docid": "9", "title": "On", "text": "bridges"}, {"docid": "10", "text": " "}],
    )  # fmt: skip
    row: dict[str, Any] = {"query": "which mill", "positive_passages": [{"docid": "7", "text": "the old mill"}]}
    data = write_lines(tmp_path / "rows.jsonl", [row])
    options: dict[str, Any] = {"model": checkpoint, "corpus": corpus, "ranks": "0:5", "format": "tdro"}
    (found,) = mined(tmp_path, **options, data=data)
    assert sorted((each["docid"], each["text"]) for each in found["negative_passages"]) == [
        ("8", "copper"),
        ("9", "On bridges"),
    ]
    assert found["positive_passages"] == [{"docid": "7", "text": "the old mill"}]
    row["positive_passages"][0].pop("docid")
    (without_id,) = mined(tmp_path, "other", **options, data=write_lines(tmp_path / "plain.jsonl", [row]))
    assert "7" in [each["docid"] for each in without_id["negative_passages"]]


def test_a_positive_outside_the_corpus_is_nobodys_negative(checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in ("copper", "tin", "lead")])
    rows = [{"query": f"which {name}", "positive": f"the {name}"} for name in ("mill", "bridge")]
    found = mined(
        tmp_path, model=checkpoint, data=write_lines(tmp_path / "rows.jsonl", rows), corpus=corpus, ranks="0:9"
    )
    assert [sorted(row["negative"]) for row in found] == [["copper", "lead", "tin"]] * 2


def test_a_query_is_not_its_own_negative(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"query": text, "positive": f"{text}!"} for text in ("which mill", "which bridge")]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in ("Which  mill", "which bridge")])
    found = mined(
        tmp_path, model=checkpoint, data=write_lines(tmp_path / "rows.jsonl", rows), corpus=corpus, ranks="0:9"
    )
    assert [row["negative"] for row in found] == [["which bridge"], ["Which  mill"]]


def test_rows_without_candidates_are_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"query": "one", "positive": ["a", "b", "c"]}, {"query": "two", "positive": ["a", "b"]}]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    found = mined(tmp_path, model=checkpoint, data=data, ranks="0:9")
    assert [(row["query"], row["negative"]) for row in found] == [("two", ["c"])]
    summary = json.loads((tmp_path / "mined.summary.json").read_text("utf-8"))
    assert summary["rows left out, for want of a candidate"] == 1
    assert summary["rows with fewer negatives than asked"] == 1
    assert summary["candidates dropped"]["known answers"] == 5


def test_a_sentence_transformers_model(verbs: Path, rows: list[dict[str, Any]], corpus: list[str], tiny_llama: Path,
                                       tmp_path: Path) -> None:  # fmt: skip
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_llama), device="cpu")
    model.prompts = {"query": "Search: ", "document": ""}
    model.save(str(tmp_path / "model"))
    options: dict[str, Any] = {"model": tmp_path / "model", "data": "verbs", "dataset_dir": verbs, "sampling": "first"}
    texts = [row["query"] for row in rows]
    prompted = f"Instruct: {INSTRUCTION}\nQuery: "
    for name, more, prompt in (
        ("own", {}, "Search: "),
        ("given", {"query_prompt": "Instruct: {instruction}\nQuery: "}, prompted),
    ):
        queries = model.encode(texts, prompt=prompt, normalize_embeddings=True)
        passages = model.encode(corpus, normalize_embeddings=True)
        expected = expected_negatives(rows, *ranked(queries, passages), corpus, 2, 20, 4)
        assert [row["negative"] for row in mined(tmp_path, name, **options, **more)] == expected

    # Rows with instructions of their own, in turns.
    own = [row | {"instruction": f"Task {number % 3}"} for number, row in enumerate(rows)]
    options |= {"data": write_lines(tmp_path / "own.jsonl", own), "query_prompt": "{instruction}: "}
    queries = model.encode([f"Task {number % 3}: {text}" for number, text in enumerate(texts)])
    expected = expected_negatives(rows, *ranked(queries / np.linalg.norm(queries, axis=1, keepdims=True), passages),
                                  corpus, 2, 20, 4)  # fmt: skip
    assert [row["negative"] for row in mined(tmp_path, "own_mined", **options)] == expected


def test_instructions_of_rows(checkpoint: Path, encoder: Encoder, tmp_path: Path) -> None:
    rows = [
        {"query": text, "positive": f"{text}!", "instruction": instruction}
        for text, instruction in (("far away", "Find places"), ("far away", "Find songs about it"), ("lead", ""))
    ]
    passages = write_lines(tmp_path / "corpus.jsonl", [{"text": line} for line in "abcdefgh"])
    found = mined(
        tmp_path, model=checkpoint, data=write_lines(tmp_path / "rows.jsonl", rows), corpus=passages, ranks="0:8",
        num_negatives=8, instruction="unused",
    )  # fmt: skip
    queries = encoder.encode([row["query"] for row in rows], prompt=[row["instruction"] for row in rows], role="query")
    _, rankings = ranked(queries, encoder.encode(list("abcdefgh")))
    assert [row["negative"] for row in found] == [["abcdefgh"[place] for place in ranking] for ranking in rankings]
    assert [row["instruction"] for row in found] == [row["instruction"] for row in rows]


def test_passages_of_a_symmetric_task_have_its_instruction(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"query": text, "positive": f"{text}!"} for text in ("far away", "lead", "a river", "nine")]
    write_lines(tmp_path / "rows.jsonl", rows)
    passages = ["near", "copper", "a brook", "eight", "a stone bridge", "spring"]
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in passages])
    entry = {"file_name": "rows.jsonl", "formatting": "retrieval", "instruction": "Find alike", "symmetric": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"alike": entry}), "utf-8")
    found = mined(
        tmp_path, model=checkpoint, data="alike", dataset_dir=tmp_path, corpus=corpus, ranks="0:6", num_negatives=6
    )
    encoder = Encoder(checkpoint)
    queries = encoder.encode([row["query"] for row in rows], prompt="Find alike")
    both = [encoder.encode(passages, prompt=prompt, role="document") for prompt in ("Find alike", "")]
    rankings = [[[passages[place] for place in row] for row in ranked(queries, each)[1]] for each in both]
    assert [row["negative"] for row in found] == rankings[0]
    assert rankings[0] != rankings[1]


def test_plain_texts_and_max_rows(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "lines.txt"
    data.write_text("the old mill\nthe stone bridge\na river\ncopper\n", "utf-8")
    found = mined(tmp_path, model=checkpoint, data=data, ranks="0:9", max_rows=3, num_negatives=9)
    assert [row["query"] for row in found] == ["the old mill", "the stone bridge", "a river"]
    for row in found:
        assert set(row["negative"]) == {"the old mill", "the stone bridge", "a river"} - {row["query"]}


def test_the_summary_shows_what_was_found(checkpoint: Path, verbs: Path, encoder: Encoder, tmp_path: Path) -> None:
    options = MiningOptions(
        model=str(checkpoint), data="verbs", output=str(tmp_path / "out.jsonl"), dataset_dir=str(verbs), chunk_size=16,
        examples=2, num_negatives=5,
    )  # fmt: skip
    summary = mine(options)
    written = read_lines(tmp_path / "out.jsonl")
    assert summary["rows written"] == len(written)
    assert summary["negatives"] == sum(len(row["negative"]) for row in written)
    assert [example["query"] for example in summary["examples"]] == [row["query"] for row in written[:2]]
    means = []
    for row in written:
        query = encoder.encode(row["query"], prompt=INSTRUCTION)
        means.append([float((encoder.encode(as_list(row[key])) @ query).mean()) for key in ("positive", "negative")])
    assert summary["mean similarity of positives"] == pytest.approx(np.mean(means, axis=0)[0], abs=1e-5)
    assert summary["mean similarity of negatives"] == pytest.approx(np.mean(means, axis=0)[1], abs=1e-5)
