"""Local retrieval data: collections in BEIR's layout, and our own retrieval files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval

from ...data.retrieval import beir
from ...data.retrieval.entries import Entry
from ...data.retrieval.evalset import build_retrieval_eval
from ...data.retrieval.formats import KNOWN_COLUMNS, group_nli_pairs
from ...data.retrieval.problems import BadRows
from ...data.retrieval.reader import HubOptions, parse_records, records_of_entry
from ...data.retrieval.rows import Task
from .reading import LocalTask, make_task


MOST_IDS_SHOWN = 5

Relevance = Mapping[str, Mapping[str, int]]


def make_beir_task(
    name: str, path: str, split: str | None, instruction: str = "", symmetric: bool = False
) -> LocalTask:
    """A folder in BEIR's layout, with its ids and its grades."""
    judgements = find_judgements(path, split)
    corpus = {key: text for key, text, _ in beir.read_texts(os.path.join(path, beir.CORPUS))}
    queries = {key: text for key, text, _ in beir.read_texts(os.path.join(path, beir.QUERIES))}
    relevant: dict[str, dict[str, int]] = {}
    unknown: dict[str, list[str]] = {beir.QUERIES: [], beir.CORPUS: []}
    for line, (query, document, grade) in beir.read_judgements(judgements):
        if query not in queries:
            unknown[beir.QUERIES].append(query)
        if document not in corpus:
            unknown[beir.CORPUS].append(document)
        if not grade.is_integer():
            raise ValueError(f"{judgements}:{line}: the grade {grade} must be a whole number.")
        relevant.setdefault(query, {})[document] = int(grade)
    refuse_unknown_ids(judgements, unknown)
    relevant = {query: grades for query, grades in relevant.items() if any(grade > 0 for grade in grades.values())}
    if not relevant:
        raise ValueError(f"{judgements}: no document is relevant to any query.")
    return retrieval_task(name, path, corpus, queries, relevant, instruction, symmetric)


def make_rows_task(entry: Entry) -> LocalTask:
    """Rows of query and positive, with what else they hold as further documents."""
    bad_rows = BadRows(known_columns=KNOWN_COLUMNS, can_skip=False)
    records = records_of_entry(entry, HubOptions(), streaming=False)
    rows = list(group_nli_pairs(parse_records(records, entry, bad_rows)))
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
    corpus = {f"d{number}": text for number, text in enumerate(material.corpus)}
    queries = {f"q{number}": text for number, text in enumerate(material.queries)}
    relevant = {
        f"q{number}": {f"d{document}": 1 for document in sorted(documents)}
        for number, documents in enumerate(material.relevant)
    }
    return retrieval_task(
        entry.name, entry.location, corpus, queries, relevant, different.pop(), bool(material.corpus_instruction)
    )


def retrieval_task(
    name: str,
    source: str,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    relevant: Relevance,
    instruction: str,
    symmetric: bool,
) -> LocalTask:
    """The task around a collection; documents of symmetric tasks have the instruction, too."""
    dataset = {
        "default": {
            "test": {
                "corpus": texts_with_ids(corpus),
                "queries": texts_with_ids({key: text for key, text in queries.items() if key in relevant}),
                "relevant_docs": {key: dict(grades) for key, grades in relevant.items()},
                "top_ranked": None,
            }
        }
    }
    roles = ("query", "document") if symmetric else ("query",)
    prompt = {role: instruction for role in roles} if instruction else None
    return make_task(AbsTaskRetrieval, name, source, dataset, kind="Retrieval", main_score="ndcg_at_10", prompt=prompt)


def texts_with_ids(texts: Mapping[str, str]) -> Dataset:
    """Columns `id` and `text`."""
    return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})


def find_judgements(path: str, split: str | None) -> str:
    """The file of a split: the one that is named, `test`, or the only one there is."""
    folder = os.path.join(path, beir.QRELS)
    splits = sorted(name.removesuffix(".tsv") for name in os.listdir(folder) if name.endswith(".tsv"))
    if split is None:
        split = "test" if "test" in splits or len(splits) != 1 else splits[0]
    if split not in splits:
        raise ValueError(
            f"{path} has no judgements for `{split}`, only for {', '.join(splits) or 'nothing'}; name one as "
            f"{path}@split."
        )
    return os.path.join(folder, f"{split}.tsv")


def refuse_unknown_ids(judgements: str, unknown: Mapping[str, Sequence[str]]) -> None:
    """Judgements about queries and documents that are not there: how many, and which."""
    parts = []
    for file, keys in unknown.items():
        if keys:
            different = list(dict.fromkeys(keys))
            shown = ", ".join(different[:MOST_IDS_SHOWN]) + (", …" if len(different) > MOST_IDS_SHOWN else "")
            parts.append(f"{len(keys)} of ids that are not in {file} ({shown})")
    if parts:
        raise ValueError(f"{judgements} has judgements {' and '.join(parts)}: add the texts or take the lines out.")
