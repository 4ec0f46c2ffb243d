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
from ..encoder.encoder import Encoder, Role
from ..hparams.embedding import Precision
from ..model.quantization import rounded
from ..model.vector_sets import Texts, VectorSets, compare


DEPTH = 100  # documents that are ranked for a query
CUTOFF = 10  # of nDCG and MRR
RECALL_CUTOFFS = (10, 100)
QUERIES_AT_ONCE = 256


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
        queries = _embed(encoder, task.queries, list(task.query_instructions), "query", share_over_ranks)
        documents = _embed(encoder, task.corpus, task.corpus_instruction, "document", share_over_ranks)
        as_read: dict[str, Texts] = {"": documents}
        if precision != "float32":
            as_read[f"{precision}_"] = _as_stored_by(encoder, documents, precision)
        by_task[task.task] = {
            f"{form}{name}": value
            for form, vectors in as_read.items()
            for name, value in retrieval_metrics(_ranked(encoder, queries, vectors), task.relevant).items()
        }

    names = list(next(iter(by_task.values())))
    metrics = {name: sum(each[name] for each in by_task.values()) / len(by_task) for name in names}
    if len(by_task) > 1:
        metrics |= {f"{task}_{name}": value for task, values in by_task.items() for name, value in values.items()}
    return metrics


def rank_documents(queries: Texts, documents: Texts, depth: int) -> Tensor:
    """The positions of the `depth` documents of the largest inner product, or MaxSim, best first: Q and D texts →
    [Q, min(depth, D)].

    Equal similarities keep the corpus order, so that a model which embeds everything alike gains nothing by chance.
    """
    depth = min(depth, len(documents))
    rankings = []
    for part in queries.split(QUERIES_AT_ONCE):
        similarities = compare(part, documents)  # [block, D]
        # Sorting all documents would take ten times as long as this choice; `~(… < …)` also chooses NaN.
        bounds = similarities.topk(depth, dim=1).values[:, -1:]
        for row, chosen in zip(similarities, ~(similarities < bounds), strict=True):
            places = chosen.nonzero().squeeze(1)  # `depth` or, with equal similarities, more
            order = row[places].sort(descending=True, stable=True).indices
            rankings.append(places[order[:depth]])
    return torch.stack(rankings)


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


def _embed(
    encoder: Encoder, texts: Sequence[str], prompt: str | list[str], role: Role, share_over_ranks: bool
) -> Texts:
    """Embeddings of N texts as they are served."""
    how: dict[str, Any] = {"role": role, "convert_to": "torch"}
    world_size = dist.get_world_size() if share_over_ranks and dist.is_initialized() else 1
    if world_size == 1:
        return _as_texts(encoder.encode(texts, prompt=prompt, **how))

    mine = slice(dist.get_rank(), None, world_size)
    part = encoder.encode(texts[mine], prompt=prompt if isinstance(prompt, str) else prompt[mine], **how)
    parts = _of_all_ranks(part, world_size)
    embeddings: list[Tensor] = [torch.empty(0)] * len(texts)
    for rank, each in enumerate(parts):
        embeddings[rank::world_size] = list(each)
    return _as_texts(embeddings)


def _as_texts(embeddings: Tensor | list[Tensor]) -> Texts:
    """A vector [d] or vectors [n, d] of each text, together."""
    if isinstance(embeddings, Tensor):
        return embeddings
    return VectorSets.of(embeddings) if embeddings[0].ndim == 2 else torch.stack(embeddings)


def _ranked(encoder: Encoder, queries: Texts, documents: Texts) -> Tensor:
    if isinstance(queries, VectorSets) or isinstance(documents, VectorSets):
        return rank_documents(queries, documents, DEPTH)  # which are of unit length
    if encoder.config.compares_unit_length:
        queries, documents = normalize(queries, dim=-1), normalize(documents, dim=-1)
    return rank_documents(queries, documents, DEPTH)


def _as_stored_by(encoder: Encoder, vectors: Texts, precision: Precision) -> Tensor:
    assert isinstance(vectors, Tensor)
    ranges = encoder.ranges_for(precision, encoder.dimension, encoder.config.normalize)
    return torch.from_numpy(rounded(vectors.numpy(), precision, ranges))


def _of_all_ranks(part: Tensor | list[Tensor], world_size: int) -> list[Any]:
    """What all ranks have embedded, through their main memory: NCCL would pass a whole corpus through every GPU's."""
    parts: list[Any] = [None] * world_size
    if dist.get_backend() == "gloo":
        dist.all_gather_object(parts, part)
        return parts
    group = dist.new_group(backend="gloo")
    dist.all_gather_object(parts, part, group=group)
    dist.destroy_process_group(group)
    return parts
