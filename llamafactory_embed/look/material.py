"""Which texts are looked at: typed or uploaded ones, or some of an evaluation set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..data.retrieval.evalset import RetrievalEval, build_retrieval_eval
from ..data.retrieval.reader import load_tasks
from ..foreign import read_json_object


TYPED = "typed texts"
GOLD_MARK = "\t"  # between a typed query and its answer


def typed_task(queries: str, documents: str, instruction: str) -> RetrievalEval | None:
    """One text a line. A query may name a document that answers it, behind a tab; it joins the documents. None where
    nothing is typed."""
    corpus = dict.fromkeys(_lines(documents))
    asked: dict[str, set[str]] = {}
    for line in _lines(queries):
        query, _, answer = (part.strip() for part in line.partition(GOLD_MARK))
        asked.setdefault(query, set()).update([answer] if answer else [])
        corpus |= {answer: None} if answer else {}
    if not asked and not corpus:
        return None
    if not asked or not corpus:
        raise ValueError("Type at least one query and one document, a line each.")
    places = {text: place for place, text in enumerate(corpus)}
    return RetrievalEval(
        task=TYPED,
        queries=tuple(asked),
        query_instructions=(instruction,) * len(asked),
        corpus=tuple(corpus),
        corpus_instruction="",
        relevant=tuple(frozenset(places[answer] for answer in answers) for answers in asked.values()),
    )


def chosen_tasks(
    names: Sequence[str], dataset_dir: str, most_queries: int, most_documents: int
) -> list[RetrievalEval]:
    """The first queries of evaluation sets, with as many of their documents."""
    if not names:
        return []
    tasks = load_tasks(list(names), dataset_dir)
    return [cut_task(build_retrieval_eval(task), most_queries, most_documents) for task in tasks]


def cut_task(task: RetrievalEval, most_queries: int, most_documents: int) -> RetrievalEval:
    """The first queries, all that answers them, and the first of the other documents up to a number of them all."""
    relevant = task.relevant[:most_queries]
    answers = {place for places in relevant for place in places}
    others = [place for place in range(len(task.corpus)) if place not in answers]
    kept = sorted([*answers, *others[: max(most_documents - len(answers), 0)]])
    new = {place: number for number, place in enumerate(kept)}
    return dataclasses.replace(
        task,
        queries=task.queries[:most_queries],
        query_instructions=task.query_instructions[:most_queries],
        corpus=tuple(task.corpus[place] for place in kept),
        relevant=tuple(frozenset(new[place] for place in places) for places in relevant),
    )


def retrieval_sets(dataset_dir: str | Path) -> list[str]:
    """The data sets of a folder that hold queries and answers."""
    path = Path(dataset_dir) / "dataset_info.json"
    try:
        entries = read_json_object(path)
    except (OSError, ValueError):
        return []
    return [
        name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("formatting") == "retrieval"
    ]


def read_pasted_lines(path: str | Path) -> str:
    """An uploaded file of texts, a line each."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{Path(path).name} is no text file in UTF-8: save it as one, a text a line.") from error


def _lines(text: str) -> list[str]:
    return [line.strip(" \r") for line in (text or "").split("\n") if line.strip()]
