"""Answers to word problems, however they are written, and short answers to questions."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llamafactory_embed.evaluation.answers import (
    answer_accuracy,
    answer_f1,
    contains_answer,
    find_answer,
    is_exact_match,
    is_same_answer,
    normalize_answer,
    read_references,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 5 apples and buys 3.\n#### 8", "8"),
        ("#### 12\nno, wait\n#### 1,234.50", "1234.50"),
        ("####$ 70,000", "70000"),
        ("#### -3", "-3"),
        ("#### 5 / 2 is 2.5", "5"),
        ("5 + 5 = 10, \\boxed{10} dollars for 3 people", "10"),
        ("First the answer is 3. Then 4 more: the answer is 7, for 2 days.", "7"),
        ("So Tom has 12 left.", "12"),
        ("A share of .5", "0.5"),
        ("1.5e3 seconds", "1500"),
    ],
)
def test_number_of_a_text(text: str, number: str) -> None:
    assert find_answer(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "I do not know.", "20 of them\n####", "#### many\n8"])
def test_no_number(text: str) -> None:
    assert find_answer(text) is None


def test_numbers_and_not_their_spelling_are_compared() -> None:
    assert is_same_answer("The answer is $1,000.00.", "#### 1000")
    assert not is_same_answer("#### 1001", "#### 1000")
    assert not is_same_answer("no idea", "no idea either")


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert answer_accuracy(["#### 1", "#### 2", "", "#### 4"], ["#### 1", "#### 3", "#### 0", "#### 4.0"]) == 0.5
    with pytest.raises(ValueError, match="no answers to mark"):
        answer_accuracy([], [])


def test_short_answers_are_compared_as_squad_does() -> None:
    assert normalize_answer("The  quick, brown fox; an U.S. theme!") == "quick brown fox us theme"
    assert is_exact_match("The Black Sea.", ["the ocean", "black sea"])
    assert not is_exact_match("in the Black Sea", ["black sea"])


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("the Black Sea.", ["black sea"], 1.0),
        ("in the Black Sea", ["Black Sea"], 4 / 5),  # precision 2/3, recall 1
        ("black black sea", ["black sea sea"], 2 / 3),  # a word counts as often as both have it
        ("Ocean", ["Black Sea", "the ocean"], 1.0),
        ("river", ["Black Sea"], 0.0),
        ("the", ["a"], 1.0),  # both without a word
        ("the", ["sea"], 0.0),
    ],
)
def test_f1_of_words(prediction: str, references: list[str], score: float) -> None:
    assert answer_f1(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "references", "contained"),
    [
        ("It is in the Black Sea.", ["black sea"], True),
        ("Black, the Sea", ["the black sea!"], True),
        ("sea black", ["black sea"], False),
        ("seaside", ["sea"], True),  # letters are compared, not words
        ("the ocean", ["Black Sea", "Ocean"], True),
        ("anything", ["the", "?"], False),  # nothing remains of them
        ("", ["sea"], False),
    ],
)
def test_an_answer_is_contained(prediction: str, references: list[str], contained: bool) -> None:
    assert contains_answer(prediction, references) == contained


@pytest.mark.parametrize(
    ("label", "references"),
    [
        ('["Charles Darwin", "Darwin"]', ["Charles Darwin", "Darwin"]),
        (' ["Żółw"]\n', ["Żółw"]),
        ("Darwin", ["Darwin"]),
        ("1859", ["1859"]),
        ("[1859, 1860]", ["[1859, 1860]"]),  # no list of texts
        ("[]", ["[]"]),
        ("[Darwin]", ["[Darwin]"]),
        ('{"a": "b"}', ['{"a": "b"}']),
    ],
)
def test_a_label_is_one_answer_or_a_list_of_them(label: str, references: list[str]) -> None:
    assert read_references(label) == references
