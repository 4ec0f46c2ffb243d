"""Local retrieval data: collections in BEIR's layout, and our own retrieval files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval

from ...data.problems import BadRows
from ...data.retrieval import beir
from ...data.retrieval.entries import Entry
from ...data.retrieval.evalset import build_retrieval_eval
from ...data.retrieval.formats import KNOWN_COLUMNS
from ...data.retrieval.reader import rows_of_entry
from ...data.retrieval.rows import Task
from .corpora import map_texts
from .reading import LocalTask, make_task


Relevance = Mapping[str, Mapping[str, int]]


def make_beir_task(
    name: str, path: str, split: str | None, instruction: str = "", symmetric: bool = False
) -> LocalTask:
    """A folder in BEIR's layout, with its ids and its grades."""
    bad_rows = BadRows(can_skip=False)
    collection = beir.Collection(path, split, bad_rows, advice=f"; name one as {path}@split")
    corpus = map_texts((passage.key, passage.text) for passage in collection.passages())
    judged = list(collection.queries())
    bad_rows.finish()
    for query in judged:
        for document, grade in query.grades.items():
            if not grade.is_integer():
                raise ValueError(f"{collection.where(query.key, document)}: the grade {grade} must be a whole number.")
    if not judged:
        raise ValueError(f"{collection.judgements}: no document is relevant to any query.")
    queries = {query.key: query.text for query in judged}
    relevant = {query.key: {key: int(grade) for key, grade in query.grades.items()} for query in judged}
    return retrieval_task(name, path, corpus, queries, relevant, instruction, symmetric)


def make_rows_task(entry: Entry) -> LocalTask:
    """Rows of query and positive, with what else they hold as further documents."""
    bad_rows = BadRows(known_columns=KNOWN_COLUMNS, can_skip=False)
    rows = list(rows_of_entry(entry, bad_rows))
    bad_rows.finish()
    if not rows:
        raise ValueError(f"{entry.location} has no rows.")
    instruction = entry.instructions[0] if len(entry.instructions) == 1 else ""
    material = build_retrieval_eval(Task(entry.task, rows, instruction, symmetric=entry.symmetric))
    different = set(material.query_instructions)
    if len(different) > 1:
        raise ValueError(
            f"the queries of {entry.location} have {len(different)} different instructions; a task of mteb "
            "has one: make a file for each."
        )
    corpus = map_texts((f"d{number}", text) for number, text in enumerate(material.corpus))
    queries = {f"q{number}": text for number, text in enumerate(material.queries)}
    relevant = {
        f"q{number}": {f"d{document}": 1 for document in sorted(documents)}
        for number, documents in enumerate(material.relevant)
    }
    return retrieval_task(
        entry.name,
        entry.location,
        corpus,
        queries,
        relevant,
        different.pop(),
        bool(material.corpus_instruction),
        [texts.location for texts in (entry.corpus, entry.queries) if texts is not None and not texts.on_hub],
    )


def retrieval_task(
    name: str,
    source: str,
    corpus: Dataset,
    queries: Mapping[str, str],
    relevant: Relevance,
    instruction: str,
    symmetric: bool,
    further_files: Sequence[str] = (),
) -> LocalTask:
    """The task around a collection; documents of symmetric tasks have the instruction, too."""
    dataset = {
        "default": {
            "test": {
                "corpus": corpus,
                "queries": map_texts((key, text) for key, text in queries.items() if key in relevant),
                "relevant_docs": {key: dict(grades) for key, grades in relevant.items()},
                "top_ranked": None,
            }
        }
    }
    roles = ("query", "document") if symmetric else ("query",)
    prompt = {role: instruction for role in roles} if instruction else None
    return make_task(
        AbsTaskRetrieval,
        name,
        source,
        dataset,
        kind="Retrieval",
        main_score="ndcg_at_10",
        prompt=prompt,
        further_files=further_files,
    )
