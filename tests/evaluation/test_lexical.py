"""BM25 and TF-IDF against their formulas written out, and words of many scripts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer

from llamafactory_embed.evaluation.answers import words
from llamafactory_embed.evaluation.lexical import LexicalSearch
from llamafactory_embed.evaluation.local import load_path
from llamafactory_embed.evaluation.models import LEXICAL
from tests.embedders import PROSE
from tests.evaluation.conftest import write_lines


CORPUS = [*PROSE, "a a a rare rare word", "nothing in common"]
QUERIES = ["the river and the boat", "a rare word, a rare word", PROSE[3], "zzz unknown"]


class Task:
    """What the search needs to know of a task."""

    name = "lines"
    modalities = ("text",)

    @staticmethod
    def get_modalities(prompt_type: Any = None) -> list[str]:
        return ["text"]


def with_ids(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"id": [str(number) for number in range(len(texts))], "text": texts})


def search(kind: str, top_ranked: Any = None) -> dict[str, dict[str, float]]:
    model = LexicalSearch(kind)
    model.index(with_ids(CORPUS), task_metadata=Task())
    return model.search(with_ids(QUERIES), task_metadata=Task(), top_k=1000, top_ranked=top_ranked)


def slow_bm25(query: str, document: str, k1: float = 1.2, b: float = 0.75) -> float:
    counts = [Counter(words(text)) for text in CORPUS]
    mean_length = sum(map(Counter.total, counts)) / len(counts)
    own = Counter(words(document))
    score = 0.0
    for word in words(query):
        frequency = sum(word in each for each in counts)
        idf = math.log(1 + (len(counts) - frequency + 0.5) / (frequency + 0.5))
        score += idf * own[word] / (own[word] + k1 * (1 - b + b * own.total() / mean_length)) if own[word] else 0.0
    return score


def test_bm25_is_its_formula() -> None:
    for number, found in search("bm25").items():
        for document, score in found.items():
            assert score == pytest.approx(slow_bm25(QUERIES[int(number)], CORPUS[int(document)]), abs=1e-9)


def test_tfidf_ranks_as_the_cosine_of_scikit_learns_vectors() -> None:
    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    documents = vectorizer.fit_transform(CORPUS)
    plain = TfidfVectorizer(analyzer=words, vocabulary=vectorizer.vocabulary_)
    plain.idf_ = vectorizer.idf_
    expected = (plain.transform(QUERIES) @ documents.T).toarray()
    for number, found in search("tfidf").items():
        scores = [found.get(str(document), 0.0) for document in range(len(CORPUS))]
        length = sum(each * each for each in expected[int(number)]) ** 0.5
        own = sum(each * each for each in scores) ** 0.5
        if length:
            assert [score / own for score in scores] == pytest.approx([e / length for e in expected[int(number)]])
        else:
            assert own == 0


@pytest.mark.parametrize("kind", LEXICAL)
def test_a_document_that_shares_no_word_is_not_found(kind: str) -> None:
    for number, found in search(kind).items():
        shared = [str(n) for n, text in enumerate(CORPUS) if set(words(text)) & set(words(QUERIES[int(number)]))]
        assert sorted(found) == sorted(shared)
        assert number != "1" or 0 < len(shared) < len(CORPUS)
    assert search(kind)["3"] == {}
    candidates = search(kind, {"3": ["1", "0"]})["3"]
    assert candidates == {"1": 0.0, "0": 0.0}  # candidates are scored in any case


@pytest.mark.parametrize("kind", LEXICAL)
def test_where_nothing_matches_the_score_is_nothing(kind: str, tmp_path: Path) -> None:
    """Queries that share no word with any passage, and one that finds its own: trec_eval breaks ties by id."""
    rows = [{"query": f"alpha{n} beta{n}", "positive": f"gamma{n} delta{n}"} for n in range(11)]
    rows.append({"query": "omega", "positive": "omega psi"})
    task = load_path(str(write_lines(tmp_path / "rows.jsonl", rows))).task
    result = mteb.evaluate(LexicalSearch(kind), task, cache=None, co2_tracker=False, show_progress_bar=False)
    ((scores,),) = result.task_results[0].scores.values()
    for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_100"):
        assert scores[metric] == pytest.approx(1 / 12, abs=1e-5)


def test_candidates_are_all_that_is_scored() -> None:
    candidates = {"0": ["3", "1"], "2": ["3"]}
    found = search("bm25", candidates)
    everything = search("bm25")
    assert {query: set(scores) for query, scores in found.items()} == {
        "0": {"1", "3"}, "1": set(), "2": {"3"}, "3": set()
    }  # fmt: skip
    assert found["0"]["3"] == everything["0"]["3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Café-au-lait, 3.5 €!", ["cafe", "au", "lait", "3", "5"]),
        ("日本語のtext", ["日", "本", "語", "の", "text"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁne x²", ["fine", "x2"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
