"""Answers in passages: what counts as one, Acc@k by its definition, and the task in mteb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mteb
import pytest

from llamafactory_embed.evaluation.answers import accuracy_at, dpr_words, holds_answer
from llamafactory_embed.evaluation.local import kind_of, load_path
from llamafactory_embed.evaluation.local.answers import make_answers_task
from tests.data.retrieval.helpers import FOLDERS
from tests.evaluation.conftest import write_lines


@pytest.mark.parametrize(
    ("passage", "answer", "holds"),
    [
        ("It was built in 1889 by Gustave Eiffel.", "gustave eiffel", True),
        ("It was built in 1889.", "188", False),
        ("He lived in São Paulo, Brazil", "Sao Paulo", True),
        ("He lived in Paulo São", "São Paulo", False),
        ("the new york-based paper", "New York", True),
        ("東京都は日本の首都です", "日本の首都", True),
        ("東京都は日本の首都です", "首都日本", False),
        ("ประเทศไทยสวยมาก", "ไทย", True),
        ("anything", "…", False),
    ],
)
def test_an_answer_is_its_words_in_order(passage: str, answer: str, holds: bool) -> None:
    assert holds_answer(passage, [answer]) is holds
    assert holds_answer(passage, ["not there", answer]) is holds


@pytest.mark.parametrize(
    ("passage", "answer", "holds"),
    [
        ("It was built in 1889 by Gustave Eiffel.", "gustave eiffel", True),
        ("He lived in São Paulo, Brazil", "são paulo", True),
        ("He lived in São Paulo, Brazil", "Sao Paulo", False),  # accents count
        ("the new york-based paper", "york-based", True),
        ("the new york based paper", "york-based", False),  # punctuation is a word
        ("東京都は日本の首都です", "日本の首都", False),  # a run of letters is a word
    ],
)
def test_dprs_rule(passage: str, answer: str, holds: bool) -> None:
    assert holds_answer(passage, [answer], dpr_words) is holds


def test_accuracy_counts_questions_answered_by_the_first_k() -> None:
    ranking = [["no", "yes one"], ["two"], ["no", "no", "three"], []]
    found = accuracy_at(ranking, [["one"], ["two", "deux"], ["drei"], ["x"]], depths=(1, 2, 5))
    assert found == {1: 1 / 4, 2: 2 / 4, 5: 2 / 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions whose words lead a lexical search to a passage with the answer, to one without, and nowhere."""
    passages = {
        "a": "The river Danube ends in the Black Sea",
        "b": "The tower of Pisa leans",
        "c": "Mount Etna smokes",
        "d": "Bread is made of flour",
    }
    write_lines(tmp_path / "corpus.jsonl", [{"_id": key, "text": text} for key, text in passages.items()])
    questions = [
        {"_id": "1", "text": "where ends the Danube", "answers": ["black sea", "Schwarzes Meer"]},
        {"_id": "2", "text": "which tower is in Pisa", "answers": ["Etna"]},
        {"_id": "3", "text": "which mount smokes", "answers": ["ETNA"]},
    ]
    write_lines(tmp_path / "queries.jsonl", questions)
    return tmp_path


class Keywords:
    """A search that finds the passages that share a word, those with more of them first."""

    mteb_model_meta = mteb.models.ModelMeta.create_empty()

    def index(self, corpus: Any, **kwargs: Any) -> None:
        self.corpus = corpus

    def search(self, queries: Any, *, top_k: int, **kwargs: Any) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for query, text in zip(queries["id"], queries["text"], strict=True):
            asked = set(text.lower().split())
            shared = {row["id"]: float(len(asked & set(row["text"].lower().split()))) for row in self.corpus}
            found[query] = dict(sorted(shared.items(), key=lambda pair: -pair[1])[:top_k])
        return found


def test_the_task_gives_the_accuracies_to_mteb(folder: Path) -> None:
    task = make_answers_task("questions", str(folder)).task
    (result,) = mteb.evaluate(Keywords(), task, cache=None, co2_tracker=False, show_progress_bar=False).task_results
    scores = result.scores["test"][0]
    assert scores["accuracy_at_1"] == pytest.approx(2 / 3)  # the second question needs Etna, and finds Pisa first
    assert scores["accuracy_at_100"] == scores["main_score"] == 1.0
    assert scores["dpr_accuracy_at_1"] == pytest.approx(2 / 3)


MKQA = FOLDERS / "mkqa"


def test_each_language_of_mkqa_is_a_subset_over_one_corpus() -> None:
    assert kind_of(str(MKQA)) == "answers"
    task = load_path(str(MKQA)).task
    (result,) = mteb.evaluate(Keywords(), task, cache=None, co2_tracker=False, show_progress_bar=False).task_results
    scores = {each["hf_subset"]: each["accuracy_at_1"] for each in result.scores["test"]}
    # No word of a passage is in the German questions, so its first passage is found: one of two answers is there.
    assert scores == {"de": 0.5, "en": 1.0}


def test_one_language_of_mkqa_can_be_named() -> None:
    task = load_path(f"{MKQA}@de").task
    assert task.dataset["de"]["test"]["queries"]["text"][:] == ["Wo endet die Donau?", "Welcher Berg raucht?"]
    assert list(task.dataset) == ["de"]
    with pytest.raises(ValueError, match="has no questions 'fr'; it has de, en"):
        load_path(f"{MKQA}@fr")


def test_a_question_without_answers_is_refused_with_its_line(folder: Path) -> None:
    write_lines(folder / "queries.jsonl", [{"_id": "1", "text": "a", "answers": ["b"]}, {"_id": "2", "text": "c"}])
    with pytest.raises(ValueError, match=r"queries.jsonl:2: `answers` must be a list with at least one text"):
        make_answers_task("questions", str(folder))
    write_lines(folder / "queries.jsonl", [{"_id": "1", "answers": ["b"]}])
    with pytest.raises(ValueError, match=r"queries.jsonl:1: every line is a JSON object with `_id` and `text`"):
        make_answers_task("questions", str(folder))
