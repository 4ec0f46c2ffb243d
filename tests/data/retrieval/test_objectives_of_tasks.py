"""What data sets and recipe set for a task, and a teacher's vectors, on their way from the entry to the example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamafactory_embed.data.retrieval.dataset import RetrievalDataset
from llamafactory_embed.data.retrieval.plan import BatchingOptions
from llamafactory_embed.data.retrieval.reader import load_tasks
from llamafactory_embed.data.retrieval.sampler import GlobalBatchSampler
from llamafactory_embed.data.retrieval.stream import StreamedBatches, stream_tasks


ROWS = [
    {"query": f"q{n}", "positive": [f"p{n}", f"r{n}"], "negative": [f"n{n}.{k}" for k in range(3)]} for n in range(6)
]
# [records, texts, size]: the vector of text t of record n is [n, t].
VECTORS = np.array([[[n, t] for t in range(6)] for n in range(6)], dtype=np.float32)


def register(folder: Path, **entries: dict[str, Any]) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    info = {name: {"file_name": "rows.jsonl", "formatting": "retrieval"} | each for name, each in entries.items()}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return str(folder)


def test_each_task_brings_its_own_number_of_negatives(tmp_path: Path) -> None:
    folder = register(tmp_path, many={"objective": {"num_negatives": 3}}, few={}, none={})
    names, of_recipe = ["many", "few", "none"], {"none": {"num_negatives": 0, "own_passages_only": True}}
    tasks = load_tasks(names, folder, num_negatives=1, objectives=of_recipe)
    assert [task.objective for task in tasks] == [{"num_negatives": 3}, {}, of_recipe["none"]]
    assert [task.own_passages_only for task in tasks] == [False, False, True]
    dataset = RetrievalDataset(tasks, num_negatives=1)
    expected = {"many": 3, "few": 1, "none": 0}
    for batch in GlobalBatchSampler(dataset, 3):
        examples = [dataset[key] for key in batch]
        assert len({example.task for example in examples}) == 1
        assert {len(example.negatives) for example in examples} == {expected[examples[0].task]}

    streams = stream_tasks(names, folder, num_negatives=1, objectives=of_recipe)
    assert [task.has_negatives for task in streams] == [True, True, False]
    seen = set()
    for examples in StreamedBatches(streams, 3, BatchingOptions(task_weights="uniform"), num_negatives=1):
        assert {len(example.negatives) for example in examples} == {expected[examples[0].task]}
        seen.add(examples[0].task)
    assert seen <= expected.keys()


def test_what_is_evaluated_has_no_objective(tmp_path: Path) -> None:
    (task,) = load_tasks("rows", register(tmp_path, rows={"objective": {"num_negatives": 9}}))
    assert task.objective == {}


def test_objectives_are_merged_and_their_tasks_must_exist(tmp_path: Path) -> None:
    own = {"objective": {"loss": "triplet", "weight": 2}}
    folder = register(tmp_path, one=own | {"task": "both"}, two=own | {"task": "both"}, other={"task": "both"})
    (task,) = load_tasks("one, two", folder, objectives={"both": {"weight": 3}})
    assert task.objective == {"loss": "triplet", "weight": 3}
    with pytest.raises(ValueError, match="Task `both` joins data sets whose `objective` differs"):
        load_tasks("one, other", folder, objectives={})
    with pytest.raises(
        ValueError, match="`objectives` names bath, which is no task of `dataset`; did you mean `both`"
    ):
        load_tasks("one", folder, objectives={"bath": {}})
    with pytest.raises(
        ValueError, match=r"Data set `odd`: `objective`: `los` is not a setting .* did you mean `loss`"
    ):
        load_tasks("odd", register(tmp_path, odd={"objective": {"los": "mse"}}))


@pytest.mark.parametrize("texts", [1, 3, 6], ids=["queries", "positives", "all"])
def test_a_teachers_vectors_follow_their_texts(texts: int, tmp_path: Path) -> None:
    """By a shuffled sample, a drawn positive and drawn negatives; from a file and from a column."""
    np.save(tmp_path / "vectors.npy", VECTORS[:, 0] if texts == 1 else VECTORS[:, :texts])
    folder = register(tmp_path, rows={"teacher_vectors": "vectors.npy", "num_samples": 4})
    from_file = load_tasks("rows", folder, seed=1)
    lines = [json.dumps(row | {"teacher_vectors": VECTORS[n, :texts].tolist()}) for n, row in enumerate(ROWS)]
    (tmp_path / "column.jsonl").write_text("\n".join(lines), encoding="utf-8")
    from_column = load_tasks("c", register(tmp_path, c={"file_name": "column.jsonl", "num_samples": 4}), seed=1)
    for tasks in (from_file, from_column):
        dataset = RetrievalDataset(tasks, num_negatives=2)
        assert len(dataset) == 4
        for epoch in range(3):
            for index in range(4):
                example = dataset[epoch, index]
                number = int(example.query[1:])
                places = [0]
                if texts > 1:
                    places.append(1 + ["p", "r"].index(example.positive[0]))
                if texts > 3:
                    places += [3 + int(text[-1]) for text in example.negatives]
                assert example.teacher_vectors is not None
                assert example.teacher_vectors.tolist() == [[number, place] for place in places]


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        (VECTORS[:5, 0], "`teacher_vectors` has vectors of 5 records"),
        (np.concatenate([VECTORS, VECTORS])[:, 0], "has vectors of 12 records, and the data set has 6"),
        (VECTORS[:, :2], r"`teacher_vectors` has 2 vectors; a row has them .* \(1, 3, 6\)"),
        (VECTORS[0, 0], r"\[records, size\] or \[records, texts, size\], and .* has float32 \[2\]"),
        (VECTORS.astype(int), "must hold numbers .* has int64"),
        (None, "is not a readable .npy file"),
    ],
    ids=["too few", "too many", "texts", "shape", "numbers", "missing"],
)
def test_vectors_that_do_not_belong_to_the_rows_are_refused(
    vectors: np.ndarray | None, sentence: str, tmp_path: Path
) -> None:
    if vectors is not None:
        np.save(tmp_path / "vectors.npy", vectors)
    with pytest.raises(ValueError, match=sentence):
        load_tasks("rows", register(tmp_path, rows={"teacher_vectors": "vectors.npy"}))


def test_a_pickled_file_is_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.array([{"a": 1}] * 6), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a readable"):
        load_tasks("rows", register(tmp_path, rows={"teacher_vectors": "vectors.npy"}))
    with pytest.raises(ValueError, match=r"must be the path of a \.npy file, not 'vectors.pt'"):
        load_tasks("rows", register(tmp_path, rows={"teacher_vectors": "vectors.pt"}))


def test_a_column_that_holds_no_vectors_is_a_bad_row(tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0] | {"teacher_vectors": value}) for value in ("a", [], [[1], [1, 2]], [float("inf")])]
    (tmp_path / "column.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match="has 4 bad rows"):
        load_tasks("rows", register(tmp_path, rows={"file_name": "column.jsonl"}))
