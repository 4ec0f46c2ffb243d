"""Collections in BEIR's layout (Thakur et al. 2021): `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator

from .rows import Row


CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"


def is_beir_folder(path: str) -> bool:
    """Whether a folder holds a collection in BEIR's layout."""
    return all(os.path.exists(os.path.join(path, name)) for name in (CORPUS, QUERIES, QRELS))


def read_beir(path: str, split: str) -> tuple[list[Row], tuple[str, ...]]:
    """Rows (a judged query with its relevant passages) and the passages that are relevant to none of them."""
    judgements = os.path.join(path, QRELS, f"{split}.tsv")
    if not os.path.isfile(judgements):
        known = ", ".join(sorted(os.path.splitext(name)[0] for name in os.listdir(os.path.join(path, QRELS))))
        raise ValueError(f"`split`: `{path}` has no judgements for `{split}`; it has {known}.")
    corpus = {key: text for key, text, _ in read_texts(os.path.join(path, CORPUS))}
    queries = {key: (text, line) for key, text, line in read_texts(os.path.join(path, QUERIES))}

    relevant: dict[str, list[str]] = {}
    for line, (query, passage, grade) in read_judgements(judgements):
        if query not in queries or passage not in corpus:
            where, key = (QUERIES, query) if query not in queries else (CORPUS, passage)
            raise ValueError(f"{judgements}:{line}: `{key}` is judged but is not in {where}.")
        if grade > 0:
            relevant.setdefault(query, []).append(passage)
    file = os.path.join(path, QUERIES)
    rows = [
        Row(queries[query][0], tuple(corpus[key] for key in passages), file=file, line=queries[query][1])
        for query, passages in relevant.items()
    ]
    answers = {key for passages in relevant.values() for key in passages}
    return rows, tuple(text for key, text in corpus.items() if key not in answers)


def read_texts(path: str) -> Iterator[tuple[str, str, int]]:
    """Id, title and text joined with one space, and line of every entry."""
    with open(path, encoding="utf-8") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                entry = json.loads(content)
                title, text = entry.get("title") or "", entry["text"]
                yield str(entry["_id"]), f"{title} {text}".strip(), line
            except (json.JSONDecodeError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}:{line}: every line is a JSON object with `_id` and `text`.") from error


def read_judgements(path: str) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """Line, and (query, passage, grade), of every judgement."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows, None)  # the header: query-id, corpus-id, score
        for cells in rows:
            try:
                query, passage, grade = cells
                yield rows.line_num, (query, passage, float(grade))
            except ValueError as error:
                where = f"{path}:{rows.line_num}"
                raise ValueError(f"{where}: a judgement is query-id, corpus-id and a number.") from error
