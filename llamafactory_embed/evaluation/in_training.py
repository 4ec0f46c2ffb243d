"""Retrieval on held-out rows while a model trains, each task in a corpus of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..data.retrieval.evalset import RetrievalEval
from ..encoder.encoder import Encoder, Role
from .retrieval_metrics import rank_documents, retrieval_metrics


DEPTH = 100


def evaluate_retrieval(
    encoder: Encoder, tasks: Sequence[RetrievalEval], *, share_over_ranks: bool, show_progress_bar: bool = False
) -> dict[str, float]:
    """Metrics of each task as `<task>_<metric>` and their mean over tasks as `<metric>`.

    With `share_over_ranks` every rank embeds its part of the texts; engines that must run the same forwards on all
    ranks (FSDP, ZeRO-3) let every rank embed all of them.
    """
    by_task: dict[str, dict[str, float]] = {}
    for task in tasks:

        def embed(texts: Sequence[str], prompt: Any, role: Role) -> torch.Tensor:
            return _encode(encoder, texts, prompt, role, share_over_ranks, show_progress_bar)

        queries = embed(task.queries, list(task.query_instructions), "query")
        documents = embed(task.corpus, task.corpus_instruction, "document")
        by_task[task.task] = retrieval_metrics(rank_documents(queries, documents, DEPTH), task.relevant)

    names = list(next(iter(by_task.values())))
    metrics = {name: sum(each[name] for each in by_task.values()) / len(by_task) for name in names}
    if len(by_task) > 1:
        metrics |= {f"{task}_{name}": value for task, values in by_task.items() for name, value in values.items()}
    return metrics


def _encode(
    encoder: Encoder, texts: Sequence[str], prompt: Any, role: Role, share_over_ranks: bool, show_progress_bar: bool
) -> torch.Tensor:
    world_size = dist.get_world_size() if share_over_ranks and dist.is_initialized() else 1
    if world_size == 1:
        return encoder.encode(texts, prompt=prompt, role=role, convert_to="torch", show_progress_bar=show_progress_bar)

    rank = dist.get_rank()
    mine = slice(rank, None, world_size)
    own_prompt = prompt if isinstance(prompt, str) else prompt[mine]
    part = encoder.encode(texts[mine], prompt=own_prompt, role=role, convert_to="torch")
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, part)
    embeddings = part.new_empty(len(texts), part.shape[1])
    for number, each in enumerate(parts):
        embeddings[number::world_size] = each
    return embeddings
