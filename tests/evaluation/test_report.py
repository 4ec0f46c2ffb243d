"""Means and tables of results."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.evaluation.report import SECOND_SCORES, Summary, format_markdown, format_summary


@dataclass
class Chosen:
    """A task as far as a summary looks at it."""

    name: str
    group: str
    metric: str

    @property
    def task(self) -> Any:
        return SimpleNamespace(metadata=SimpleNamespace(main_score=self.metric))


def result(score: float, **parts: Any) -> Any:
    return SimpleNamespace(get_score=lambda: score, scores={"test": [parts]})


def means(summary: Summary) -> dict[tuple[str, str], dict[str, float]]:
    return {(line.task, line.metric): line.scores for line in summary.means()}


def test_means_are_over_one_metric_and_over_all_of_a_benchmark() -> None:
    summary = Summary(["one", "two"])
    scores = {("A", "ndcg"): (0.5, 0.1), ("B", "ndcg"): (0.3, 0.2), ("C", "accuracy"): (0.7, 0.9)}
    for (name, metric), found in scores.items():
        for model, score in zip(summary.models, found, strict=True):
            summary.add(Chosen(name, "bench", metric), model, result(score))
    assert means(summary) == {
        ("mean of 2, bench", "ndcg"): pytest.approx({"one": 0.4, "two": 0.15}),
        ("mean of 3, bench", "main score"): pytest.approx({"one": 0.5, "two": 0.4}),
    }


def test_a_second_score_has_a_line_for_each_subset() -> None:
    summary = Summary(["one"])
    task = SimpleNamespace(metadata=SimpleNamespace(main_score="accuracy"), second_score="dpr")
    subsets = [{"hf_subset": "de", "dpr": 0.25}, {"hf_subset": "en", "dpr": 0.75}]
    chosen: Any = SimpleNamespace(name="mkqa", group="local", task=task)
    summary.add(chosen, "one", SimpleNamespace(get_score=lambda: 0.6, scores={"test": subsets}))
    chosen = SimpleNamespace(name="others", group="local", task=task)
    summary.add(chosen, "one", SimpleNamespace(get_score=lambda: 0.2, scores={"test": [{"hf_subset": "default"}]}))
    assert {(line.task, line.metric): line.scores["one"] for line in summary.lines} == {
        ("mkqa", "accuracy"): 0.6,
        ("mkqa", "dpr"): 0.5,
        ("mkqa", "dpr (de)"): 0.25,
        ("mkqa", "dpr (en)"): 0.75,
        ("others", "accuracy"): 0.2,  # judged before the second score was there
    }
    assert means(summary) == {("mean of 2, local", "accuracy"): {"one": pytest.approx(0.4)}}


def test_means_are_those_of_models_that_were_run_on_everything() -> None:
    summary = Summary(["one", "words"])
    for name, group in (("A", ""), ("B", ""), ("C", "local"), ("D", "local")):
        summary.add(Chosen(name, group, "ndcg" if name != "D" else "spearman"), "one", result(0.2))
    summary.add(Chosen("A", "", "ndcg"), "words", result(0.9))
    assert means(summary) == {("mean of 2", "ndcg"): pytest.approx({"one": 0.2})}  # local data are no benchmark
    (row,) = [line for line in format_summary(summary).splitlines() if line.startswith("B ")]
    assert row.split() == ["B", "ndcg", "20.00", "-"]


def test_the_second_score_of_followir_has_a_mean_of_its_own() -> None:
    summary = Summary(["one"])
    for number, (name, (part, metric)) in enumerate(SECOND_SCORES.items()):
        summary.add(Chosen(name, "followir", "p-MRR"), "one", result(0.01 * number, **{part: {metric: 0.1 * number}}))
    found = means(summary)
    assert found[("mean of 3, followir", "p-MRR")] == pytest.approx({"one": 0.01})
    assert found[("mean of 3, followir", "second score")] == pytest.approx({"one": 0.1})


def test_the_markdown_table_has_a_line_for_each_line() -> None:
    summary = Summary(["one"])
    for name in "AB":
        summary.add(Chosen(name, "", "ndcg"), "one", result(0.123456))
    assert format_markdown(summary).splitlines() == [
        "| task | metric | one |",
        "| --- | --- | ---: |",
        "| A | ndcg | 12.35 |",
        "| B | ndcg | 12.35 |",
        "| mean of 2 | ndcg | 12.35 |",
    ]
