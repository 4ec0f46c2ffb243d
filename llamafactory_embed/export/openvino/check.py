"""What a graph has kept of the checkpoint: cosines of vectors, and nDCG@10 of tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ...encoder.encoder import Encoder
from ...evaluation.run import evaluate_encoder
from ...evaluation.tasks import ChosenTask
from ...model.embedding import EmbeddingModel
from ...model.packed import PackedBatch
from ..serving import Serving
from ..verify import Expected, embed_as_users_do
from .graph import OUTPUT, open_graph


if TYPE_CHECKING:
    from openvino import CompiledModel


LEAST_COSINE = {"float32": 0.999, "int8": 0.99}  # of a sample text's two vectors
NDCG = "ndcg_at_10"


@dataclass(frozen=True)
class TaskScore:
    """nDCG@10 of a task."""

    task: str
    before: float
    """Of the checkpoint, in float32."""
    after: float
    """Of the graph."""


class ThroughGraph(EmbeddingModel):
    """The checkpoint's model, its transformer replaced by a graph: whatever embeds with the one embeds with the
    other."""

    def __init__(self, model: EmbeddingModel, graph: CompiledModel) -> None:
        super().__init__(model.backbone, model.embedding_config)
        self.load_pooling_weights(model.pooling_weights())
        self.graph = graph
        self.eval()

    def forward(self, batches: Sequence[PackedBatch]) -> Tensor:
        """Packed rows, unpacked for the graph, which knows padding only."""
        pooled = [self.pool([self._states(each)], each.lengths, each.pooled_tokens) for each in batches]
        order = torch.tensor([index for batch in batches for index in batch.text_indices])
        return torch.cat(pooled)[order.argsort()]

    def _states(self, batch: PackedBatch) -> Tensor:
        """States of texts end to end, [T, d]."""
        texts = batch.token_ids.split(list(batch.lengths))
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)  # [B, L]
        inputs = {"input_ids": pad_sequence(list(texts), batch_first=True).numpy(), "attention_mask": mask.numpy()}
        return torch.from_numpy(self.graph(inputs)[OUTPUT])[mask.bool()]


def check_cosines(folder: Path, expected: Sequence[Expected], serving: Serving, dtype: str) -> float:
    """Load the folder as its users do and return the lowest cosine of a sample text's vector with the checkpoint's;
    refuse the folder if it is too low. A graph that attends otherwise than the checkpoint does cannot pass."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(
        str(folder), device="cpu", backend="openvino", local_files_only=True, trust_remote_code=serving.needs_code
    )
    lowest = 1.0
    for each, vectors, _ in embed_as_users_do(loaded, expected, serving):
        cosine = lowest_cosine(vectors, each.vectors)
        if not cosine >= LEAST_COSINE[dtype]:  # also for NaN
            raise ValueError(
                f"The OpenVINO graph in {dtype} is not the same model: {each.case.role} texts (prompt: "
                f"{each.case.prompt_name}) have a cosine of {cosine:.4f} with the checkpoint's vectors, below "
                f"{LEAST_COSINE[dtype]}; nothing was written."
            )
        lowest = min(lowest, cosine)
    return lowest


def lowest_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    """Of corresponding rows [N, d]."""
    if vectors.shape != expected.shape:
        return float("-inf")
    products = np.sum(vectors.astype(np.float64) * expected, axis=1)
    return float(np.min(products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)))


def score_tasks(
    folder: Path, model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[ChosenTask]
) -> list[TaskScore]:
    """Every task with the checkpoint and with the folder's graph."""
    if not tasks:
        return []
    before = _ndcg(model, tokenizer, tasks)
    after = _ndcg(ThroughGraph(model, open_graph(folder)), tokenizer, tasks)
    return [TaskScore(task, before[task], after[task]) for task in before]


def _ndcg(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[ChosenTask]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as results:
        scores = evaluate_encoder(Encoder(model, tokenizer), tasks, "export/checked", Path(results))
    found = {task.name: scores.get(f"{task.name}_{NDCG}") for task in tasks}
    without = [name for name, score in found.items() if score is None]
    if without:
        raise ValueError(f"`--check-tasks`: {', '.join(without)} gave no nDCG@10: name tasks of retrieval that run.")
    return {name: score for name, score in found.items() if score is not None}
