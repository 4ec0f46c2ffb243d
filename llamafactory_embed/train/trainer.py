"""What every stage of ours needs of the Trainer: a module of our own around the language model, batches planned for
all ranks at once, checkpoints that the host and PEFT can load, and runs that go on where they stopped."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from accelerate.utils import DistributedType
from llamafactory.train.callbacks import PissaConvertCallback
from llamafactory.train.pt.trainer import CustomTrainer
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME


RECIPE_NAME = "recipe.yaml"


class EpochDataLoader(DataLoader):
    """A data loader whose batch sampler is told the epoch, as the Trainer tells samplers of accelerate."""

    def __init__(self, dataset: Dataset, batches: Any, **kwargs: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **kwargs)
        self.global_batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.global_batches.set_epoch(epoch)


class ResumedEpoch(TrainerCallback):
    """Tells the sampler the epoch in which training goes on. To skip the batches it has seen, the Trainer puts a plain
    data loader around the sampler, to which it cannot tell the epoch."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        data_loader: EpochDataLoader = kwargs["train_dataloader"]
        steps_per_epoch = math.ceil(len(data_loader) / args.gradient_accumulation_steps)
        data_loader.set_epoch(state.global_step // steps_per_epoch)


class WrappedModelTrainer(CustomTrainer, ABC):
    """The host's trainer (optimizers, schedulers, callbacks) around a module that holds the language model, with
    PEFT's wrapper or not, as `backbone` and its transformer as `decoder`."""

    control: TrainerControl

    def __init__(
        self, *, model: nn.Module, args: TrainingArguments, batches: Any | None, recipe: dict[str, Any], **kwargs: Any
    ) -> None:
        """`batches` yields this rank's part of global batches and has `set_epoch`; None where nothing is trained."""
        prepare_for_engines(model, args)
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(PissaConvertCallback)  # every checkpoint is converted when it is written
        self.batches = batches
        self.recipe = recipe
        self.write_card: Callable[[], None] = lambda: None
        self.add_callback(ResumedEpoch())

    @abstractmethod
    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """Write the model, and what is needed to use it as it was trained. `state_dict` is that of the whole model
        where an engine (FSDP, ZeRO-3) had to collect it."""

    @abstractmethod
    def read_checkpoint(self, folder: Path) -> None:
        """Put the weights of a checkpoint into the model, to resume or to go back to the best one."""

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the parameters and gathers them in every forward."""
        return self.is_fsdp_enabled or is_deepspeed_zero3_enabled()

    @property
    def is_in_lockstep(self) -> bool:
        """Whether the ranks exchange something in every forward or, as ZeRO-2 does, in every backward: they wait for
        ever if one of them runs fewer than another."""
        return self.is_sharded or self.is_deepspeed_enabled

    @property
    def wrapped_model(self) -> Any:
        """The module without DDP's, FSDP's or DeepSpeed's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank. They are planned for all ranks at once, so accelerate must not deal them out again."""
        assert self.batches is not None
        return EpochDataLoader(
            self.train_dataset,
            self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,  # a batch is moved by the model, row by row
            persistent_workers=False,  # workers must see the epoch
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._leave_out_frozen_parameters()
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._leave_out_frozen_parameters()
        super()._save_optimizer_and_scheduler(output_dir)

    def _leave_out_frozen_parameters(self) -> None:
        """Let DeepSpeed neither gather nor write the base model of an adapter. The Trainer asks for that itself, but
        does not recognise an adapter inside of a module of ours."""
        if not self.is_deepspeed_enabled or not isinstance(self.wrapped_model.backbone, PeftModel):
            return
        engine = self.model_wrapped
        for method in ("save_checkpoint", "_zero3_consolidated_16bit_state_dict"):
            setattr(engine, method, partial(getattr(type(engine), method), engine, exclude_frozen_parameters=True))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.write_checkpoint(folder, state_dict)
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
            self.read_checkpoint(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            super()._load_best_model()
        else:
            self.read_checkpoint(Path(self.state.best_model_checkpoint))


def prepare_for_engines(model: Any, args: TrainingArguments) -> None:
    """What DDP, DeepSpeed and FSDP have to know of a module of ours before they wrap it."""
    model._no_split_modules = model.decoder._no_split_modules  # FSDP's units
    model.tie_weights = model.backbone.tie_weights  # FSDP moves parameters, and unties them with that
    if isinstance(model.backbone, PeftModel):
        model.register_load_state_dict_post_hook(allow_missing_frozen_parameters)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every parameter that learns is used in every forward
    if dist.is_initialized():
        # A step may run several forwards. Under reentrant checkpointing every layer of each of them runs a backward
        # of its own, and DDP averages a gradient when only the first of them has reached it.
        language_model: Any = model.backbone
        if isinstance(language_model, PeftModel):
            language_model = language_model.get_base_model()
        if language_model.is_gradient_checkpointing:
            language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def allow_missing_frozen_parameters(model: torch.nn.Module, keys: Any) -> None:
    """A hook for the checkpoints of adapters, which hold what learns: the base model has been loaded before them."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in learning]
