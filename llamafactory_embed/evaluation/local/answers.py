"""Questions judged by whether a retrieved passage holds one of their answers (Acc@k), as tDRO evaluates MKQA."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mteb.abstasks import AbsTaskRetrieval
from mteb.models import SearchProtocol
from mteb.models.search_wrappers import SearchEncoderWrapper

from ...data.files import read_records
from ...data.problems import BadRowError, BadRows
from ...data.retrieval import beir
from ...data.retrieval.texts import parse_texts, read_texts
from ..answers import DEPTHS, accuracy_at, dpr_words, words
from .corpora import map_texts, texts_with_ids
from .reading import LocalTask, make_task


MAIN_DEPTH = 100
ONE_SUBSET = "default"  # mteb's name of the only one

# MKQA as tDRO lays it out: the corpus of BEIR's NQ, and its test questions, a file for each language.
CORPUS_FILES = (beir.CORPUS, f"{beir.CORPUS}.gz", "nq.jsonl")
LANGUAGES = "test"


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
        texts = texts_with_ids(corpus, {key for found in results.values() for key in found})
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
    """A folder with a corpus and with questions that have answers instead of judgements."""
    return _corpus_file(path) is not None and bool(_question_files(path))


def make_answers_task(name: str, path: str, subset: str | None = None) -> LocalTask:
    """A corpus as in BEIR and questions with a list `answers` in every line.

    The questions are in `queries.jsonl` or, as published for MKQA, in a file for each language in `test/`. Then each
    language is a subset of the task, unless one is named.
    """
    corpus_file, files = _corpus_file(path), _question_files(path)
    if corpus_file is None or not files:
        raise ValueError(
            f"{path} must be a folder with {beir.CORPUS}, and {beir.QUERIES} or files of questions in {LANGUAGES}/."
        )
    if subset is not None:
        if subset not in files:
            raise ValueError(f"{path} has no questions {subset!r}; it has {', '.join(files)}.")
        files = {subset: files[subset]}
    corpus = map_texts((passage.key, passage.text) for passage in read_texts(corpus_file))
    questions = {subset: read_questions(file) for subset, file in files.items()}
    if not len(corpus) or not all(questions.values()):
        raise ValueError(f"{path} has no queries or no corpus.")
    data = {
        subset: {
            "test": {
                "corpus": corpus,
                "queries": map_texts((question.key, question.text) for question in asked),
                "relevant_docs": {},
                "top_ranked": None,
            }
        }
        for subset, asked in questions.items()
    }
    return make_task(
        AnswerTask,
        name,
        path,
        data,
        kind="Retrieval",
        main_score=f"accuracy_at_{MAIN_DEPTH}",
        subsets=[] if list(files) == [ONE_SUBSET] else list(files),
        answers={
            subset: {question.key: question.answers for question in asked} for subset, asked in questions.items()
        },
    )


class Question(NamedTuple):
    """A question and the answers that count."""

    key: str
    text: str
    answers: list[str]


def read_questions(file: str) -> list[Question]:
    """The questions of a file; bad lines are reported together."""
    bad_rows = BadRows(can_skip=False)
    records = list(read_records(file))
    texts = {text.line: text for text in parse_texts(records, {}, bad_rows)}
    questions = []
    for _, line, record in records:
        if line not in texts or isinstance(record, BadRowError):
            continue
        answers = record.get("answers")
        if isinstance(answers, list) and any(isinstance(each, str) and words(each) for each in answers):
            questions.append(Question(texts[line].key, texts[line].text, [str(each) for each in answers]))
        else:
            bad_rows.add(file, line, "`answers` must be a list with at least one text")
    bad_rows.finish()
    return questions


def _corpus_file(path: str) -> str | None:
    files = (os.path.join(path, name) for name in CORPUS_FILES)
    return next((file for file in files if os.path.isfile(file)), None)


def _question_files(path: str) -> dict[str, str]:
    """The files with questions by the name of their subset."""
    queries = os.path.join(path, beir.QUERIES)
    if os.path.isfile(queries):
        return {ONE_SUBSET: queries}
    folder = os.path.join(path, LANGUAGES)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name.removesuffix(".jsonl"): os.path.join(folder, name) for name in names if name.endswith(".jsonl")}
