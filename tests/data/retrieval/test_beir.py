"""Folders in BEIR's layout: rows, the whole corpus, and what is missing or broken in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_embed.data.retrieval.evalset import build_retrieval_eval
from tests.data.retrieval.helpers import read_task, without_place


def test_a_beir_folder_gives_its_judged_queries_and_the_whole_corpus(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "1", "title": "T", "text": "one"}\n{"_id": "2", "text": "two"}\n{"_id": "3", "text": "three"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "A"}\n{"_id": "b", "text": "B"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\t2\t1\nb\t1\t2\nb\t3\t0\n")
    task = read_task(".", tmp_path)
    assert without_place(task.rows) == [("B", ("two", "T one"), (), None, None)]
    material = build_retrieval_eval(task)
    assert material.queries == ("B",)
    assert set(material.corpus) == {"T one", "two", "three"}
    assert {material.corpus[place] for place in material.relevant[0]} == {"two", "T one"}
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nb\t9\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv:2: `9` is judged but is not in corpus\.jsonl"):
        read_task(".", tmp_path)
    with pytest.raises(ValueError, match="has no judgements for `dev`; it has test"):
        read_task(".", tmp_path, split="dev")
