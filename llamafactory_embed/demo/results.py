"""What the demo shows: how well held-out words are found before and after, and what lies next to a few queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.retrieval.evalset import RetrievalEval, build_retrieval_eval
from ..data.retrieval.reader import load_tasks
from ..encoder.encoder import Encoder
from ..evaluation.answers import words
from ..evaluation.in_training import DEPTH, rank_documents, retrieval_metrics
from ..evaluation.word_weights import bm25_weights
from ..hparams.contrastive import ContrastiveOptions
from ..hparams.option import make_options
from ..loading.checkpoint import default_device
from ..loading.weights import load_language_model
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig


METRICS = ("ndcg@10", "mrr@10", "recall@10", "recall@100")
# Definitions in our own words, of words that are in the held-out part.
QUERIES = {
    "wordnet_gloss_to_noun": "a large building where people worship",
    "wordnet_gloss_to_verb": "move fast by using one's feet",
    "wordnet_gloss_to_adjective": "very happy",
}
NEIGHBOURS = 5

Metrics = dict[str, float]


@dataclass(frozen=True)
class SampleQuery:
    """A query and what lies nearest to it, with the similarity, best first."""

    task: str
    query: str
    neighbours: list[tuple[str, float]]


@dataclass(frozen=True)
class Found:
    """How a model does: the means over the tasks, and its neighbours of the sample queries."""

    metrics: Metrics
    samples: list[SampleQuery]


@dataclass(frozen=True)
class FinishedRun:
    """What the training run reports."""

    steps: int
    metrics: Metrics
    losses: list[tuple[int, float]]


def load_evals(recipe: Mapping[str, Any]) -> list[RetrievalEval]:
    """The recipe's held-out tasks."""
    return [build_retrieval_eval(task) for task in load_tasks(recipe["eval_dataset"], recipe["dataset_dir"])]


def open_base_model(recipe: Mapping[str, Any]) -> Encoder:
    """The language model as it is: it reads from left to right, and the mean of what it thinks of a text's tokens is
    its embedding. Prompts and lengths are the recipe's."""
    from transformers import AutoTokenizer

    names = ("query_template", "document_template", "query_max_length", "document_max_length")
    values = {name: recipe[name] for name in names if name in recipe}
    options = make_options(ContrastiveOptions, {**values, "attention": "causal", "pooling": "mean"})
    config = EmbeddingConfig.from_options(options, int(recipe.get("cutoff_len", 2048)))
    model = EmbeddingModel(load_language_model(recipe["model_name_or_path"], dtype=torch.float32), config)
    model = model.requires_grad_(False).eval().to(default_device())
    return Encoder(model, AutoTokenizer.from_pretrained(recipe["model_name_or_path"]))


def try_model(encoder: Encoder, evals: Sequence[RetrievalEval]) -> Found:
    """Search every task, and look at the neighbours of the sample queries."""
    by_task, samples = [], []
    for each in evals:
        queries = encoder.encode(each.queries, prompt=each.query_instructions, convert_to="torch")
        documents = encode_corpus(encoder, each)
        by_task.append(retrieval_metrics(rank_documents(queries, documents, DEPTH), each.relevant))
        samples += sample_neighbours(encoder, each, documents)
    return Found(mean_of(by_task), samples)


def neighbours_of_samples(encoder: Encoder, evals: Sequence[RetrievalEval]) -> list[SampleQuery]:
    """The neighbours alone."""
    return [
        found
        for each in evals
        if sample_query(each) is not None
        for found in sample_neighbours(encoder, each, encode_corpus(encoder, each))
    ]


def sample_query(each: RetrievalEval) -> str | None:
    """The query that is shown for a task: ours; the first one of a task that is not bundled."""
    if each.task in QUERIES:
        return QUERIES[each.task]
    return None if each.task.startswith("wordnet_") else each.queries[0]


def sample_neighbours(encoder: Encoder, each: RetrievalEval, documents: torch.Tensor) -> list[SampleQuery]:
    """The texts nearest to a task's sample query, where it has one; documents [D, d]."""
    query = sample_query(each)
    if query is None:
        return []
    scores = documents @ encoder.encode([query], prompt=[each.query_instructions[0]], convert_to="torch")[0]
    best = scores.topk(min(NEIGHBOURS, len(scores)))
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [SampleQuery(each.task, query, [(each.corpus[index], score) for index, score in found])]


def encode_corpus(encoder: Encoder, each: RetrievalEval) -> torch.Tensor:
    """All documents of a task, [D, d]."""
    instruction = each.corpus_instruction or None
    embeddings: torch.Tensor = encoder.encode(each.corpus, prompt=instruction, role="document", convert_to="torch")
    return embeddings


def bm25_metrics(evals: Sequence[RetrievalEval]) -> Metrics:
    """What counting common words finds. A document that shares no word with a query is not found."""
    from scipy.sparse import diags
    from sklearn.feature_extraction.text import CountVectorizer

    by_task = []
    for each in evals:
        counter = CountVectorizer(analyzer=words, dtype=np.float64)
        weights, query_weights = bm25_weights(counter.fit_transform(each.corpus))
        scores = (counter.transform(each.queries) @ diags(query_weights) @ weights.T).toarray()  # [Q, D]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        order[np.take_along_axis(scores, order, axis=1) <= 0] = -1  # the place of no document
        by_task.append(retrieval_metrics(torch.from_numpy(order), each.relevant))
    return mean_of(by_task)


def mean_of(by_task: Sequence[Mapping[str, float]]) -> Metrics:
    """Each metric's mean over the tasks."""
    return {name: sum(each[name] for each in by_task) / len(by_task) for name in METRICS}


def table_lines(rows: Mapping[str, Metrics], what: str) -> list[str]:
    """The table for the terminal, in percent."""
    width = max(len(what), *(len(name) + 2 for name in rows))
    head = f"{what:{width}}" + "".join(f"{name.replace('ndcg', 'nDCG').replace('mrr', 'MRR'):>12}" for name in METRICS)
    return [head] + [
        f"  {name:{width - 2}}" + "".join(f"{100 * metrics[metric]:12.1f}" for metric in METRICS)
        for name, metrics in rows.items()
    ]


def read_run(output: Path) -> FinishedRun:
    """What a run has written beside its checkpoint."""
    metrics = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [(int(entry["step"]), float(entry["loss"])) for entry in state["log_history"] if "loss" in entry]
    return FinishedRun(int(state["global_step"]), {name: metrics[f"eval_{name}"] for name in METRICS}, losses)
