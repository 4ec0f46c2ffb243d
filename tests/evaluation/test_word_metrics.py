"""Scores of words against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory_embed.evaluation.word_metrics import CUT, draw_confusions, is_of_entities, per_label, word_metrics


GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
SAID = [["B-PER", "I-PER", "O", "B-PER"], ["O", "O"]]


def test_entities_and_words_are_counted_apart() -> None:
    found = word_metrics(GOLD, SAID)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # two entities are predicted, one of them right, of three that there are
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 / 5)
    assert found["f1_LOC"] == 0
    assert found["f1_PER"] == pytest.approx(1 / 2)  # precision 1/2, recall 1/2


def test_a_word_that_was_not_read_is_wrong() -> None:
    gold = [["O", "O", "B-PER"]]
    assert word_metrics(gold, [["O", CUT, CUT]])["accuracy"] == pytest.approx(1 / 3)
    assert word_metrics(gold, [["O", CUT, CUT]])["recall"] == 0
    assert CUT not in per_label(gold, [["O", CUT, CUT]])


def test_labels_that_mark_no_entities_get_their_mean_f1() -> None:
    found = word_metrics([["NOUN", "VERB", "NOUN"]], [["NOUN", "NOUN", "NOUN"]])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 0) / 2)
    assert "f1" not in found


def test_kinds_of_labels() -> None:
    assert is_of_entities(["B-PER", "O", "I-PER"])
    assert not is_of_entities(["O"])
    assert not is_of_entities(["NOUN", "B-PER"])


def test_confusions_are_drawn(tmp_path: Path) -> None:
    draw_confusions(GOLD, SAID, tmp_path / "confusions.png")
    assert (tmp_path / "confusions.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["confusions.png"]
