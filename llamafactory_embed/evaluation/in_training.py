"""Retrieval on held-out rows while a model trains, each task in a corpus of its own: nDCG, MRR and recall of rankings
with binary relevance, as trec_eval defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from ..data.retrieval.evalset import RetrievalEval
from ..encoder.encoder import WINDOW, Encoder
from ..hparams.embedding import Precision
from ..model.quantization import rounded
from ..model.vector_sets import Texts, VectorSets
from .ranking import BestDocuments, join_rankings


DEPTH = 100  # documents that are ranked for a query
CUTOFF = 10  # of nDCG and MRR
RECALL_CUTOFFS = (10, 100)
DOCUMENTS_AT_ONCE = 4 * WINDOW  # embedded and ranked together; whole windows, so that forwards are those of one call


def evaluate_retrieval(
    encoder: Encoder, tasks: Sequence[RetrievalEval], *, share_over_ranks: bool, precision: Precision = "float32"
) -> dict[str, float]:
    """Metrics of each task as `<task>_<metric>` and their mean over tasks as `<metric>`; in another precision than
    float32 also `<precision>_<metric>`, of documents that are stored in it and searched with float queries.

    With `share_over_ranks` every rank embeds its part of the texts; engines that must run the same forwards on all
    ranks (FSDP, ZeRO-3) let every rank embed all of them.
    """
    by_task: dict[str, dict[str, float]] = {}
    for task in tasks:
        rankings = _rank_corpus(encoder, task, share_over_ranks, precision)
        by_task[task.task] = {
            f"{form}{name}": value
            for form, ranking in rankings.items()
            for name, value in retrieval_metrics(ranking, task.relevant).items()
        }

    names = list(next(iter(by_task.values())))
    metrics = {name: sum(each[name] for each in by_task.values()) / len(by_task) for name in names}
    if len(by_task) > 1:
        metrics |= {f"{task}_{name}": value for task, values in by_task.items() for name, value in values.items()}
    return metrics


def rank_documents(queries: Texts, documents: Texts, depth: int) -> Tensor:
    """The positions of the `depth` documents of the largest inner product, or MaxSim, best first: Q and D texts →
    [Q, min(depth, D)]. Equal similarities keep the corpus order."""
    best = BestDocuments(queries, depth)
    best.add(documents, torch.arange(len(documents), device=documents.device))
    return best.ranking[1]


def retrieval_metrics(ranking: Tensor, relevant: Sequence[frozenset[int]]) -> dict[str, float]:
    """Means over queries: `ndcg@10`, `mrr@10`, `recall@10` and `recall@100`. `relevant[i]` are the positions that
    answer query i."""
    depth = ranking.shape[1]
    hits = torch.zeros(ranking.shape, dtype=torch.float64)  # [Q, depth]
    for query, (order, answers) in enumerate(zip(ranking.tolist(), relevant, strict=True)):
        hits[query] = torch.tensor([float(document in answers) for document in order], dtype=torch.float64)
    totals = torch.tensor([len(answers) for answers in relevant], dtype=torch.float64)

    discounts = 1 / torch.log2(torch.arange(depth, dtype=torch.float64) + 2)
    discounts[CUTOFF:] = 0
    ideal = torch.stack([discounts[: int(total)].sum() for total in totals])
    top = hits[:, :CUTOFF]
    first = top.argmax(dim=1)
    reciprocal = torch.where(top.any(dim=1), 1 / (first + 1).double(), torch.zeros(len(top), dtype=torch.float64))
    metrics = {f"ndcg@{CUTOFF}": float((hits @ discounts / ideal).mean()), f"mrr@{CUTOFF}": float(reciprocal.mean())}
    for cutoff in RECALL_CUTOFFS:
        metrics[f"recall@{cutoff}"] = float((hits[:, :cutoff].sum(dim=1) / totals).mean())
    return metrics


def _rank_corpus(
    encoder: Encoder, task: RetrievalEval, share_over_ranks: bool, precision: Precision
) -> dict[str, Tensor]:
    """The best documents of each query [Q, DEPTH], by documents as they are embedded ("") and, with a `precision`, as
    they are stored in it. Of the corpus only a window's vectors are held at a time; each rank has a part of it."""
    world_size = dist.get_world_size() if share_over_ranks and dist.is_initialized() else 1
    rank = dist.get_rank() if world_size > 1 else 0
    queries = _as_compared(encoder, _embed_queries(encoder, task, rank, world_size))
    forms = [""] if precision == "float32" else ["", f"{precision}_"]
    best = {form: BestDocuments(queries, DEPTH) for form in forms}
    places = torch.arange(len(task.corpus))[rank::world_size]
    for window in places.split(DOCUMENTS_AT_ONCE):
        texts = [task.corpus[place] for place in window.tolist()]
        documents = _as_texts(
            encoder.encode(texts, prompt=task.corpus_instruction, role="document", convert_to="torch")
        )
        for form, ranked in best.items():
            stored = _as_stored_by(encoder, documents, precision) if form else documents
            ranked.add(_as_compared(encoder, stored), window)
    rankings = {form: ranked.ranking for form, ranked in best.items()}
    if world_size > 1:
        parts = _of_all_ranks(rankings, world_size)
        rankings = {form: join_rankings([part[form] for part in parts], DEPTH) for form in forms}
    return {form: ranking[1] for form, ranking in rankings.items()}


def _embed_queries(encoder: Encoder, task: RetrievalEval, rank: int, world_size: int) -> Texts:
    """Queries as they are served; each rank embeds a part, and gets all."""
    mine = slice(rank, None, world_size)
    prompts = list(task.query_instructions[mine])
    part = encoder.encode(task.queries[mine], prompt=prompts, role="query", convert_to="torch")
    if world_size == 1:
        return _as_texts(part)
    embeddings: list[Tensor] = [torch.empty(0)] * len(task.queries)
    for other, each in enumerate(_of_all_ranks(part, world_size)):
        embeddings[other::world_size] = list(each)
    return _as_texts(embeddings)


def _as_texts(embeddings: Tensor | list[Tensor]) -> Texts:
    """A vector [d] or vectors [n, d] of each text, together."""
    if isinstance(embeddings, Tensor):
        return embeddings
    return VectorSets.of(embeddings) if embeddings[0].ndim == 2 else torch.stack(embeddings)


def _as_compared(encoder: Encoder, texts: Texts) -> Texts:
    """At unit length where the model compares by cosine; sets of vectors are of unit length."""
    if isinstance(texts, VectorSets) or not encoder.config.compares_unit_length:
        return texts
    return normalize(texts, dim=-1)


def _as_stored_by(encoder: Encoder, vectors: Texts, precision: Precision) -> Tensor:
    assert isinstance(vectors, Tensor)
    ranges = encoder.ranges_for(precision, encoder.dimension, encoder.config.normalize)
    return torch.from_numpy(rounded(vectors.numpy(), precision, ranges))


def _of_all_ranks(part: Any, world_size: int) -> list[Any]:
    """What all ranks have, through their main memory: NCCL would pass it through every GPU's."""
    parts: list[Any] = [None] * world_size
    if dist.get_backend() == "gloo":
        dist.all_gather_object(parts, part)
        return parts
    group = dist.new_group(backend="gloo")
    dist.all_gather_object(parts, part, group=group)
    dist.destroy_process_group(group)
    return parts
