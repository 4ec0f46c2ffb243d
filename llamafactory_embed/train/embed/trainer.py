"""What every stage that trains an embedder needs of the Trainer: checkpoints that can be served, even epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ...data.batches import BatchSampler, EvenEpochs, GivenRows, ItemBatches
from ...data.retrieval.rows import Example
from ...data.retrieval.sampler import GlobalBatchSampler
from ...data.retrieval.stream import StreamedBatchSampler
from ...loading.checkpoint import load_checkpoint_weights, save_checkpoint
from ...model.embedding import EmbeddingModel
from ..trainer import WrappedModelTrainer


AnySampler = GlobalBatchSampler | StreamedBatchSampler


class EmbeddingTrainer(WrappedModelTrainer):
    """The host's trainer around an `EmbeddingModel`."""

    def __init__(self, *, batch_sampler: AnySampler | None, train_dataset: Dataset | None, **kwargs: Any) -> None:
        """`batch_sampler` yields examples, or their numbers in its data set, which then stays in this process."""
        batches: BatchSampler[Example] | None
        if isinstance(batch_sampler, GlobalBatchSampler):
            batches = ItemBatches(batch_sampler, batch_sampler.dataset)
            train_dataset = GivenRows(len(batch_sampler.dataset))
        else:
            batches = batch_sampler
        even = None if batches is None else EvenEpochs(batches)
        super().__init__(batches=even, train_dataset=train_dataset, **kwargs)

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The model without DDP's, FSDP's or DeepSpeed's wrapper."""
        return self.wrapped_model

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        save_checkpoint(self.embedding_model, folder, state_dict)

    def read_checkpoint(self, folder: Path) -> None:
        load_checkpoint_weights(self.embedding_model, folder)
