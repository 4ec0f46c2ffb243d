"""Questions judged by whether a retrieved passage holds one of their answers (Acc@k), as tDRO evaluates MKQA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTaskRetrieval
from mteb.models import SearchProtocol
from mteb.models.search_wrappers import SearchEncoderWrapper

from ...data.retrieval import beir
from ..answers import DEPTHS, accuracy_at, dpr_words, words
from .reading import LocalTask, make_task
from .retrieval import texts_with_ids


MAIN_DEPTH = 100


class AnswerTask(AbsTaskRetrieval):
    """A retrieval task without judgements: a passage that holds an answer is relevant."""

    k_values = DEPTHS
    second_score = f"dpr_accuracy_at_{MAIN_DEPTH}"
    answers: Mapping[str, Mapping[str, Sequence[str]]]
    """By subset (MKQA has one for each language) and question."""

    def _evaluate_subset(
        self,
        model: Any,
        data_split: Any,
        *,
        encode_kwargs: Any,
        hf_split: str,
        hf_subset: str,
        prediction_folder: Path | None = None,
        **kwargs: Any,
    ) -> Any:
        search: Any = model if isinstance(model, SearchProtocol) else SearchEncoderWrapper(model)
        about: dict[str, Any] = {"task_metadata": self.metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        about |= {"encode_kwargs": encode_kwargs, "num_proc": None}
        corpus, queries = data_split["corpus"], data_split["queries"]
        search.index(corpus, **about)
        results = search.search(queries, top_k=max(DEPTHS), **about)
        if prediction_folder is not None:
            self._save_task_predictions(results, model, prediction_folder, hf_split=hf_split, hf_subset=hf_subset)
        texts = dict(zip(corpus["id"], corpus["text"], strict=True))
        names = list(queries["id"])
        ranking = [
            [texts[key] for key, _ in sorted(results[name].items(), key=lambda pair: (-pair[1], pair[0]))]
            for name in names
        ]
        answers = [self.answers[hf_subset][name] for name in names]
        scores: dict[str, float] = {}
        for prefix, split in (("", words), ("dpr_", dpr_words)):
            accuracy = accuracy_at(ranking, answers, split=split)
            scores |= {f"{prefix}accuracy_at_{depth}": value for depth, value in accuracy.items()}
        return scores


def is_answers_folder(path: str) -> bool:
    """A folder with a corpus and with queries that have answers instead of judgements."""
    return all(os.path.isfile(os.path.join(path, name)) for name in (beir.CORPUS, beir.QUERIES))


def make_answers_task(name: str, path: str) -> LocalTask:
    """`corpus.jsonl` as in BEIR, and `queries.jsonl` with a list `answers` in every line."""
    if not is_answers_folder(path):
        raise ValueError(f"{path} must be a folder with {beir.CORPUS} and {beir.QUERIES}.")
    corpus = {key: text for key, text, _ in beir.read_texts(os.path.join(path, beir.CORPUS))}
    file = os.path.join(path, beir.QUERIES)
    queries = {key: text for key, text, _ in beir.read_texts(file)}
    answers = {}
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                entry = json.loads(line)
                found = entry.get("answers")
                if not isinstance(found, list) or not any(isinstance(each, str) and words(each) for each in found):
                    raise ValueError(f"{file}:{number}: `answers` must be a list with at least one text.")
                answers[str(entry["_id"])] = [str(each) for each in found]
    if not queries or not corpus:
        raise ValueError(f"{path} has no queries or no corpus.")
    data = {
        "corpus": texts_with_ids(corpus),
        "queries": texts_with_ids(queries),
        "relevant_docs": {},
        "top_ranked": None,
    }
    main_score = f"accuracy_at_{MAIN_DEPTH}"
    return make_task(
        AnswerTask,
        name,
        path,
        {"default": {"test": data}},
        kind="Retrieval",
        main_score=main_score,
        answers={"default": answers},
    )
