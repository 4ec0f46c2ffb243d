"""Corpora in a file: the rows that a dictionary would hold, and nothing of them in memory or left on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_embed.data.retrieval import text_table
from llamafactory_embed.evaluation.local import corpora
from llamafactory_embed.evaluation.local.corpora import map_texts, texts_with_ids


TEXTS = [("b", "first"), ("a", "höher\n"), ("b", "last"), ("c", ""), ("a", "höher\n")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("limit", ["TEXTS_OF_BLOCK", "CHARACTERS_OF_BLOCK"])
def test_rows_are_those_of_a_dictionary(count: int, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_table, limit, 2)
    monkeypatch.setattr(corpora, "ROWS_AT_ONCE", 2)
    expected = dict(TEXTS[:count])
    rows = map_texts(TEXTS[:count])
    assert list(rows["id"]) == list(expected)
    assert list(rows["text"]) == list(expected.values())
    assert texts_with_ids(rows, {"a", "c", "none"}) == {key: expected[key] for key in ("a", "c") if key in expected}


def test_equal_hashes_of_different_ids_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_has_equal", lambda hashes: True)
    assert list(map_texts([("a", "1"), ("b", "2")])["text"]) == ["1", "2"]


def test_the_file_is_mapped_and_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = map_texts((str(number), "text" * 100) for number in range(20_000))
    assert list(tmp_path.iterdir()) == []
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) == 1
    assert rows[19_999] == {"id": "19999", "text": "text" * 100}
