"""Rows as evaluation material: which texts are searched, and which answer a query."""

from __future__ import annotations

import pytest

from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from llamafactory_embed.data.retrieval.rows import Row, Task
from tests.data.retrieval.helpers import read_task


def test_evaluation_joins_equal_texts_and_equal_queries() -> None:
    rows = [
        Row("q1", ("p1", "shared"), ("n1",)),
        Row("q2", ("p2",), ("shared", "n1")),
        Row("q1", ("p3",)),
        Row("q1", ("p4",), instruction="another question"),
    ]
    material = build_retrieval_eval(Task("t", rows, instruction="find", symmetric=True))
    assert sorted(material.corpus) == ["n1", "p1", "p2", "p3", "p4", "shared"]
    found = {
        (query, instruction): {material.corpus[place] for place in relevant}
        for query, instruction, relevant in zip(
            material.queries, material.query_instructions, material.relevant, strict=True
        )
    }
    assert found == {
        ("q1", "find"): {"p1", "shared", "p3"},
        ("q2", "find"): {"p2"},
        ("q1", "another question"): {"p4"},
    }
    assert material.corpus_instruction == "find"


@pytest.mark.parametrize(("name", "problem"), [("scored_pairs.csv", "scored pairs"), ("sentences.txt", "plain texts")])
def test_what_cannot_be_searched_is_refused_for_evaluation(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_retrieval_eval(read_task(name))
