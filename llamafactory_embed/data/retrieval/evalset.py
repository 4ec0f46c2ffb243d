"""Retrieval evaluation on rows: the queries, the corpus they are searched in, and which passages answer them."""

from __future__ import annotations

from dataclasses import dataclass

from .rows import Task


@dataclass(frozen=True)
class RetrievalEval:
    """One task's evaluation material; `relevant[i]` holds positions in `corpus` that answer `queries[i]`."""

    task: str
    queries: tuple[str, ...]
    query_instructions: tuple[str, ...]
    corpus: tuple[str, ...]
    corpus_instruction: str
    relevant: tuple[frozenset[int], ...]


def build_retrieval_eval(task: Task) -> RetrievalEval:
    """The corpus is every positive and negative of the task and, of a BEIR folder, all its passages, each text once.

    Rows that ask the same query are one query whose relevant passages are those of all of them.
    """
    corpus: dict[str, int] = {}
    relevant: dict[tuple[str, str], set[int]] = {}
    for row in task.rows:
        if row.scores is not None and not row.negatives and len(row.positives) == 1:
            raise ValueError(
                f"`eval_dataset`: task `{task.name}` holds scored pairs ({row.where}), which have no right or wrong "
                "passage; evaluate on rows with a query and its positive."
            )
        if row.positives == (row.query,):
            raise ValueError(
                f"`eval_dataset`: task `{task.name}` holds plain texts ({row.where}), each of which would only find "
                "itself; evaluate on rows with a query and its positive."
            )
        instruction = row.instruction if row.instruction is not None else task.instruction
        answers = relevant.setdefault((row.query, instruction), set())
        answers.update(corpus.setdefault(text, len(corpus)) for text in row.positives)
        for text in row.negatives:
            corpus.setdefault(text, len(corpus))
    for text in task.corpus:
        corpus.setdefault(text, len(corpus))
    return RetrievalEval(
        task=task.name,
        queries=tuple(query for query, _ in relevant),
        query_instructions=tuple(instruction for _, instruction in relevant),
        corpus=tuple(corpus),
        corpus_instruction=task.instruction if task.symmetric else "",
        relevant=tuple(frozenset(answers) for answers in relevant.values()),
    )
