"""Files and folders become tasks of mteb: recognised by shape, judged by the real mteb, or refused with a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from scipy.stats import spearmanr

from llamafactory_embed.data.retrieval.entries import make_entry
from llamafactory_embed.evaluation.local import load_entry, load_path, split_path
from llamafactory_embed.evaluation.revisions import revision_of_data
from llamafactory_embed.evaluation.tasks import choose_tasks
from tests.data.retrieval.helpers import FOLDERS
from tests.evaluation.conftest import write_beir, write_lines


class Bags:
    """An encoder that every task can be checked against by hand: counts of letters."""

    mteb_model_meta = mteb.models.ModelMeta.create_empty()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        return bags([text for batch in inputs for text in batch["text"]])

    def similarity(self, one: Any, other: Any) -> Any:
        return cos_sim(one, other)

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        return pairwise_cos_sim(one, other)


def bags(texts: list[str]) -> np.ndarray:
    return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32) + 0.01


def run(task: Any, model: Any = None) -> dict[str, Any]:
    result = mteb.evaluate(model or Bags(), task, cache=None, co2_tracker=False, show_progress_bar=False)
    ((scores,),) = result.task_results[0].scores.values()
    return scores


PAIRS = [("aab", "aab", 5.0), ("aab", "abb", 4.0), ("abc", "cde", 2.5), ("aa", "hh", 0.0), ("abcd", "abce", 4.5)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_pairs_are_judged_by_spearmans_correlation(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{ending}"
    if ending == "jsonl":
        write_lines(path, [{"sentence1": one, "sentence2": other, "score": score} for one, other, score in PAIRS])
    else:
        comma = "," if ending == "csv" else "\t"
        path.write_text("\n".join(comma.join(map(str, row)) for row in [("sentence1", "sentence2", "score"), *PAIRS]))
    scores = run(load_path(str(path)).task)
    one, other = bags([pair[0] for pair in PAIRS]), bags([pair[1] for pair in PAIRS])
    similar = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert scores["main_score"] == pytest.approx(spearmanr(similar, [pair[2] for pair in PAIRS])[0])


def labelled(count: int, start: int = 0) -> list[dict[str, str]]:
    """Texts whose label is the letter they have most of."""
    letters = "ade"
    return [
        {"text": letters[n % 3] * (6 + n % 5) + "bcgh"[n % 4] * (n % 3), "label": f"mostly {letters[n % 3]}"}
        for n in range(start, start + count)
    ]


def test_a_folder_with_train_and_test_is_classification(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled(60))
    write_lines(tmp_path / "test.jsonl", labelled(30, 60))
    task = load_path(str(tmp_path)).task
    assert task.metadata.type == "Classification"
    assert run(task)["accuracy"] == 1.0
    swapped = [row | {"label": labelled(1, n + 1)[0]["label"]} for n, row in enumerate(labelled(30))]
    write_lines(tmp_path / "test.jsonl", swapped)
    assert run(load_path(str(tmp_path)).task)["accuracy"] == 0.0


def test_one_file_with_labels_is_cross_validated(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "moods.jsonl", labelled(60))
    task = load_path(str(path)).task
    assert task.is_cross_validation
    assert run(task)["accuracy"] == 1.0


def test_clusters_are_found(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "cluster": row["label"]} for row in labelled(60)]
    task = load_path(str(write_lines(tmp_path / "topics.jsonl", rows))).task
    assert task.metadata.type == "Clustering"
    assert run(task)["v_measure"] > 0.99
    shuffled = np.random.default_rng(0).permutation([row["cluster"] for row in rows])
    mixed = [row | {"cluster": str(cluster)} for row, cluster in zip(rows, shuffled, strict=True)]
    assert run(load_path(str(write_lines(tmp_path / "topics.jsonl", mixed))).task)["v_measure"] < 0.3


def test_a_kind_can_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "topics.jsonl", labelled(20))
    assert load_path(str(path)).task.metadata.type == "Classification"
    assert load_path(f"clustering:{path}").task.metadata.type == "Clustering"
    with pytest.raises(ValueError, match=r"begins with `clusterin:`, .*did you mean `clustering`\?"):
        load_path(f"clusterin:{path}")


def test_splits_and_kinds_are_read_from_paths(tmp_path: Path) -> None:
    assert split_path("a/b") == (None, "a/b", None)
    assert split_path("sts:a/b.csv") == ("sts", "a/b.csv", None)
    assert split_path("retrieval:a/b@dev") == ("retrieval", "a/b", "dev")
    assert split_path("C:\\data") == (None, "C:\\data", None)
    odd = tmp_path / "a@b"
    odd.mkdir()
    assert split_path(str(odd)) == (None, str(odd), None)
    assert split_path(f"{odd}@dev") == (None, str(odd), "dev")


def test_retrieval_rows_have_a_corpus_of_all_passages(tmp_path: Path) -> None:
    rows = [
        {"query": "aaa", "positive": "aab", "negative": ["ccc"]},
        {"query": "ccc", "positive": ["ccd", "ccc"]},
        {"query": "aaa", "positive": "aac"},
    ]
    split = load_path(str(write_lines(tmp_path / "rows.jsonl", rows))).task.dataset["default"]["test"]
    texts = dict(zip(split["corpus"]["id"], split["corpus"]["text"], strict=True))
    queries = dict(zip(split["queries"]["id"], split["queries"]["text"], strict=True))
    found = {
        queries[query]: {texts[document] for document in grades} for query, grades in split["relevant_docs"].items()
    }
    assert found == {"aaa": {"aab", "aac"}, "ccc": {"ccd", "ccc"}}
    assert sorted(texts.values()) == ["aab", "aac", "ccc", "ccd"]


def test_bad_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"query": "a", "positive": "b"}, {"query": "a", "positive": ""}])
    with pytest.raises(ValueError, match=r"1 bad rows; repair them:\n.*rows.jsonl:2: `positive` is empty"):
        load_path(str(path))


def test_grades_and_ids_of_a_collection_are_kept(beir: Path) -> None:
    split = load_path(str(beir)).task.dataset["default"]["test"]
    assert split["relevant_docs"]["q0"] == {"d1": 2, "d2": 1}
    assert set(split["queries"]["id"]) == set(split["relevant_docs"])
    assert len(split["corpus"]) == len((beir / "corpus.jsonl").read_text().splitlines())


def test_judgements_of_unknown_ids_are_counted_and_listed(tmp_path: Path) -> None:
    folder = write_beir(tmp_path, [("q0", "d1", 1), ("q0", "dX", 1), ("nobody", "dX", 1), ("q1", "dY", 0)])
    with pytest.raises(ValueError, match=r"1 of ids that are not in queries.jsonl \(nobody\) and 3 of .*\(dX, dY\)"):
        load_path(str(folder))


def test_splits_of_a_collection(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    assert load_path(str(folder)).task.dataset["default"]["test"]["relevant_docs"]
    with pytest.raises(ValueError, match=r"no judgements for `tset`; it has dev; name one as .*@split"):
        load_path(f"{folder}@tset")


def test_the_revision_is_that_of_the_content(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", labelled(20))
    before = revision_of_data(str(path))
    assert load_path(str(path)).task.metadata.revision == load_path(str(path)).task.metadata.revision
    write_lines(path, labelled(21))
    assert revision_of_data(str(path)) != before != revision_of_data(str(path), "an instruction")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}] * 3, "every `score` must be a number"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}] * 3, "at least two different scores"),
        ([{"text": "a", "label": "x"}] * 20, "all rows have the same label"),
        ([{"text": "a", "cluster": "x"}] * 20, "all rows are of the same cluster"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "needs at least 10 rows"),
        ([{"text": "a", "label": "x"}, {"text": "", "label": "y"}], r"data.jsonl:2: `text` is empty"),
        ([{"text": "a \ud83d", "label": "x"}], r"data.jsonl:1: `text` holds half a character"),
    ],
)
def test_data_that_cannot_be_judged_are_refused(rows: list[dict[str, Any]], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_path(str(write_lines(tmp_path / "data.jsonl", rows)))


def test_a_label_that_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", labelled(20))
    write_lines(tmp_path / "test.jsonl", [{"text": "x", "label": "new"}])
    with pytest.raises(ValueError, match="the label 'new' is in `test` but not in `train`"):
        load_path(str(tmp_path))


def test_tasks_are_named_by_entry_path_or_mteb(beir: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d"}])
    entry = {"file_name": rows.name, "formatting": "retrieval", "instruction": "Find it", "symmetric": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    chosen = choose_tasks(["mine", str(beir), "SciFact"], str(tmp_path))
    assert [task.name for task in chosen] == ["mine", "following_lines", "SciFact"]
    assert [task.is_local for task in chosen] == [True, True, False]
    assert chosen[0].task.metadata.prompt == {"query": "Find it", "document": "Find it"}

    with pytest.raises(ValueError, match=r"`tasks`: SciFatc is no task .*did you mean `SciFact`\?"):
        choose_tasks(["SciFatc"], None)
    with pytest.raises(ValueError, match=r"`tasks`: there is no file or folder nowhere/x\.jsonl"):
        choose_tasks(["nowhere/x.jsonl"], None)
    other = write_beir(tmp_path / "following_lines")
    with pytest.raises(ValueError, match="would both be called `following_lines`"):
        choose_tasks([str(beir), str(other)], None)


def test_choosing_tasks_leaves_random_numbers_alone() -> None:
    import random

    import torch

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    choose_tasks(["SciFact"], None)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_miracl_as_published_is_retrieval() -> None:
    data = load_path(str(FOLDERS / "miracl-v1.0-de")).task.dataset["default"]["test"]
    assert data["queries"]["text"][:] == ['Wo endet die "Donau"?', "Welcher Berg raucht?"]
    assert data["relevant_docs"] == {"0#0": {"5#0": 1, "6#0": 0}, "1#0": {"6#0": 1}}
    assert data["corpus"]["id"][:] == ["5#0", "6#0"]


def test_rows_whose_texts_lie_in_a_corpus_are_judged_anew_when_it_changes(tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / "by_id", tmp_path / "by_id")
    settings = {"formatting": "retrieval", "corpus": "corpus.jsonl", "queries": "queries.tsv"}
    entry = make_entry("by_id", {"file_name": "triples.jsonl", **settings}, str(tmp_path / "by_id"))
    task = load_entry(entry).task
    assert task.dataset["default"]["test"]["queries"]["text"][:] == ['what is a "kitten"', "what barks"]
    with open(tmp_path / "by_id" / "corpus.jsonl", "a") as corpus:
        corpus.write('{"docid": "13", "text": "a mill"}\n')
    assert load_entry(entry).task.metadata.revision != task.metadata.revision
