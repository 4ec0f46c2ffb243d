"""What every stage that trains an embedder needs of the Trainer: checkpoints that can be served, resumed sampling."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import DistributedType
from llamafactory.train.pt.trainer import CustomTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME

from ...data.retrieval.sampler import GlobalBatchSampler
from ...model.checkpoint import load_checkpoint_weights, save_checkpoint
from ...model.embedding import EmbeddingModel


RECIPE_NAME = "recipe.yaml"


class EpochDataLoader(DataLoader):
    """A data loader whose batch sampler is told the epoch, as the Trainer tells samplers of accelerate."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        while not isinstance(sampler, GlobalBatchSampler):  # accelerate wraps it when it skips batches to resume
            sampler = sampler.batch_sampler
        sampler.set_epoch(epoch)


class EmbeddingTrainer(CustomTrainer):
    """The host's trainer (optimizers, schedulers, callbacks) around an `EmbeddingModel`."""

    def __init__(self, *, batch_sampler: GlobalBatchSampler | None, recipe: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch_sampler = batch_sampler
        self.recipe = recipe
        self.write_card: Callable[[], None] = lambda: None

    @property
    def is_sharded(self) -> bool:
        """Whether the engine gathers parameters in every forward, so that all ranks must run equally many."""
        return self.is_fsdp_enabled or is_deepspeed_zero3_enabled()

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The model without DDP's, FSDP's or DeepSpeed's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank. They are planned for all ranks at once, so accelerate must not deal them out again."""
        assert self.batch_sampler is not None
        return EpochDataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,  # a batch is moved by the model, row by row
            persistent_workers=False,  # workers must see the epoch
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_checkpoint(self.embedding_model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)
        temporary = folder / f"{RECIPE_NAME}.tmp"
        temporary.write_text(yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, folder / RECIPE_NAME)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stage's own card, also when the Trainer asks for one before it pushes."""
        if self.is_world_process_zero():
            self.write_card()

    def publish(self) -> None:
        """Write the card, and push the checkpoint if the recipe says so."""
        if self.args.push_to_hub:
            self.push_to_hub()
        else:
            self.create_model_card()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_checkpoint_weights(self.embedding_model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            super()._load_best_model()
        else:
            load_checkpoint_weights(self.embedding_model, self.state.best_model_checkpoint)
