"""What every stage that trains an embedder needs of the Trainer: checkpoints that can be served, even epochs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.retrieval.sampler import GlobalBatchSampler
from ...loading.checkpoint import load_checkpoint_weights, save_checkpoint
from ...model.embedding import EmbeddingModel
from ..trainer import WrappedModelTrainer
from .streaming import StreamedBatchSampler


AnySampler = GlobalBatchSampler | StreamedBatchSampler


class EvenEpochs:
    """The sampler's batches, as many in every epoch as in the first. Rows that find no place in an epoch, for their
    texts are in its batches already, are more in one epoch than in another; but the Trainer counts steps by the first
    epoch's length, also to find the place where a checkpoint was saved. What is too short starts again."""

    def __init__(self, sampler: AnySampler) -> None:
        self.sampler = sampler
        self.length = len(sampler)
        self.batch_size = sampler.batch_size
        self.drop_last = sampler.drop_last

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        count = before = 0
        while count < self.length:
            for batch in itertools.islice(self.sampler, self.length - count):
                count += 1
                yield batch
            if count == before:
                return  # no batch at all can be made in this epoch
            before = count


class EmbeddingTrainer(WrappedModelTrainer):
    """The host's trainer around an `EmbeddingModel`."""

    def __init__(self, *, batch_sampler: AnySampler | None, **kwargs: Any) -> None:
        super().__init__(batches=None if batch_sampler is None else EvenEpochs(batch_sampler), **kwargs)
        self.batch_sampler = batch_sampler

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The model without DDP's, FSDP's or DeepSpeed's wrapper."""
        return self.wrapped_model

    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        save_checkpoint(self.embedding_model, folder, state_dict)

    def read_checkpoint(self, folder: Path) -> None:
        load_checkpoint_weights(self.embedding_model, folder)
