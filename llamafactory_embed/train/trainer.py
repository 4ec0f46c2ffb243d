"""The trainer of every stage of this package: a module around the language model, batches planned for all ranks at
once, the template of a step and of an evaluation, checkpoints that the host and PEFT can load, and runs that go on
where they stopped."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.distributed as dist
import yaml
from accelerate.utils import DistributedType
from llamafactory.extras import logging
from llamafactory.train.callbacks import PissaConvertCallback
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer import TRAINING_ARGS_NAME

from ..files import write_text
from ..hparams.secrets import arguments_without_secrets
from ..model.around_decoder import AroundDecoder
from ..processor import WITHOUT_BF16, has_bf16
from .bad_steps import NamesRows
from .engines import check_fsdp, compile_for_engines, prepare_for_engines
from .evaluation_log import EvaluationLog
from .saving import WholeCheckpointTrainer
from .token_budget import TokenBudget


logger = logging.get_logger(__name__)

RECIPE_NAME = "recipe.yaml"

Forward = TypeVar("Forward")  # what one forward of a stage's module takes


class Batches(Protocol):
    """This rank's part of the global batches of an epoch, as the data loader's batch sampler."""

    batch_size: int
    drop_last: bool

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[Any]]: ...


class EpochDataLoader(DataLoader):
    """A data loader whose batch sampler is told the epoch, as the Trainer tells samplers of accelerate."""

    def __init__(self, dataset: Dataset, batches: Batches, **kwargs: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **kwargs)
        self.global_batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.global_batches.set_epoch(epoch)


class ResumedEpoch(TrainerCallback):
    """Tells the sampler the epoch in which training goes on. To skip the batches it has seen, the Trainer puts a plain
    data loader around the sampler, to which it cannot tell the epoch."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        data_loader: EpochDataLoader = kwargs["train_dataloader"]
        steps_per_epoch = math.ceil(len(data_loader) / args.gradient_accumulation_steps)
        data_loader.set_epoch(state.global_step // steps_per_epoch)


class WrappedModelTrainer(WholeCheckpointTrainer, ABC):
    """The host's trainer (optimizers, schedulers, callbacks) around a module that holds the language model."""

    control: TrainerControl

    sums_losses: ClassVar[bool] = False
    """Whether the loss of a step is a sum over all its micro-batches and ranks, divided by the sum of their
    `loss_count`: then accumulating equals a large batch, and several ranks equal one process. Otherwise it is the mean
    of the micro-batches' losses."""

    loss_has_a_state: ClassVar[bool] = False
    """Whether a forward changes what a checkpoint holds: after a bad one there is no good state to save."""

    def __init__(
        self,
        *,
        model: AroundDecoder,
        args: TrainingArguments,
        batches: Batches | None,
        recipe: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """`batches` is None where nothing is trained."""
        prepare_for_engines(model, args)
        super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.is_fsdp2)
        if args.torch_compile:
            compile_for_engines(self, model)
        if args.bf16 and args.device.type == "cpu" and has_bf16() is False:
            logger.warning_rank0(f"`bf16: true`: {WITHOUT_BF16}")
        self.model_accepts_loss_kwargs |= self.sums_losses  # the Trainer would divide by the number of micro-batches
        self.remove_callback(PissaConvertCallback)  # every checkpoint is converted when it is written
        self.batches = batches
        self.recipe = recipe
        self.batches_of_step: list[dict[str, Any]] = []
        self.token_budget: TokenBudget | None = None
        self._write_card: Callable[[], None] | None = None
        self.add_callback(ResumedEpoch())
        self.add_callback(EvaluationLog())

    # ------------------------------------------- what a stage brings ---------------------------------------------

    @abstractmethod
    def evaluation_metrics(self) -> dict[str, float]:
        """What `evaluate` reports, by names without the prefix; the same on every rank."""

    @abstractmethod
    def write_checkpoint(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """Write the model, and what is needed to use it as it was trained. `state_dict` is that of the whole model
        where an engine (FSDP, ZeRO-3) had to collect it."""

    @abstractmethod
    def read_checkpoint(self, folder: Path) -> None:
        """Put the weights of a checkpoint into the model, to resume or to go back to the best one."""

    def loss_count(self, inputs: dict[str, Any]) -> Tensor:
        """What a micro-batch adds to the number that the summed loss of a step is divided by (labels, words)."""
        raise NotImplementedError(f"{type(self).__name__} sums losses and does not count what it divides them by.")

    def add_forwards(self, forwards: list[Any], count: int) -> list[Any]:
        """The same work in `count` forwards, which are no fewer than those given."""
        raise NotImplementedError(f"{type(self).__name__} cannot run more forwards than it has.")

    @property
    def remembered(self) -> Sequence[object]:
        """What a loss changes beside the gradients: `auto_token_budget` puts it back where a step runs again."""
        return ()

    def text_lengths(self, inputs: dict[str, Any]) -> Sequence[int]:
        """The tokens of each text of a micro-batch, for stages with `auto_token_budget`."""
        raise NotImplementedError(f"{type(self).__name__} has no `auto_token_budget`.")

    def step_in_forwards(
        self, model: nn.Module, inputs: dict[str, Any], count_of_step: Tensor | None, max_tokens: int
    ) -> Tensor:
        """Run a micro-batch in forwards of at most so many tokens, and carry the gradient of its loss, which is
        returned, to the parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no `auto_token_budget`.")

    def memory_advice(self) -> str:
        """What to set when memory ran out."""
        rows, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        if rows == 1:
            return "lower `cutoff_len`, or set `gradient_checkpointing: true`"
        return f"set `per_device_train_batch_size: {rows // 2}` and `gradient_accumulation_steps: {2 * steps}`"

    # ------------------------------------------------- engines ---------------------------------------------------

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

    def _equal_forwards(self, forwards: list[Forward]) -> list[Forward]:
        """As many forwards on every rank as on the one that runs most, where the engine needs that."""
        if not self.is_in_lockstep or self.accelerator.num_processes == 1:
            return forwards
        count = torch.tensor(len(forwards), device=self.args.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return self.add_forwards(forwards, int(count))

    # ------------------------------------------------- training --------------------------------------------------

    def part_of_step_loss(self, total: Tensor, count: Tensor, count_of_step: Tensor | None) -> Tensor:
        """What a micro-batch whose losses add up to `total` brings to the loss of its step. The Trainer hands on
        `count_of_step` from `_get_num_items_in_batch`; without it the micro-batch is the step."""
        divisor = count if count_of_step is None else count_of_step
        # Engines average over ranks; where the count of the whole step is 0, the sum is, too.
        return total * self.accelerator.num_processes / divisor.to(total).clamp(min=1e-6)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's own step, or one that may run again in smaller forwards."""
        if self.token_budget is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self.optimizer.train()  # for schedule-free optimizers
        return self.token_budget.run_micro_batch(model, num_items_in_batch)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """The `loss_count` of a step: of all its micro-batches, on all ranks."""
        self.batches_of_step = batch_samples
        if self.token_budget is not None:
            self.token_budget.begin_step()
        if not self.sums_losses or not batch_samples:
            return None
        count = torch.stack([self.loss_count(inputs) for inputs in batch_samples]).sum().to(device)
        if self.accelerator.num_processes > 1:
            dist.all_reduce(count)
        return count

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this rank. They are planned for all ranks at once, so accelerate must not deal them out again."""
        assert self.batches is not None
        return EpochDataLoader(
            self.train_dataset,
            self.batches,
            collate_fn=NamesRows(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,  # a batch is moved by the model, row by row
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=False,  # workers must see the epoch
        )

    # ------------------------------------------------ evaluation -------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The stage's metrics, without dropout; they are logged, and callbacks see them."""
        self._prepare_for_evaluation()
        if self.optimizer is not None:
            self.optimizer.eval()  # for schedule-free optimizers
        was_training = self.model.training
        self.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluation_metrics().items()}
        self.model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _prepare_for_evaluation(self) -> None:
        """Outside of a training: place a model that was not trained before, which engines leave to the start of a
        training, and cast it where the recipe asks for that."""
        if self.is_in_train:
            return
        if not self.accelerator._models:
            if self.is_fsdp_enabled:
                raise ValueError(
                    "`do_eval` without `do_train` is not supported under FSDP, which shards a model together with its "
                    "optimizer: evaluate in a run without FSDP, or with DeepSpeed ZeRO-3."
                )
            if is_deepspeed_zero3_enabled():
                deepspeed_init(self, num_training_steps=0, inference=True)
                self.model_wrapped = self.deepspeed = self.accelerator.prepare(self.model)
            else:
                self.model.to(self.args.device)
        if self.args.fp16_full_eval or self.args.bf16_full_eval:
            self.model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16)

    # ------------------------------------------------ checkpoints ------------------------------------------------

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
        torch.save(arguments_without_secrets(self.args), folder / TRAINING_ARGS_NAME)
        write_text(folder / RECIPE_NAME, yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stage's card instead of the Trainer's, which it asks for before it pushes: there is none before
        `publish`."""
        if self._write_card is not None and self.is_world_process_zero():
            self._write_card()

    def publish(self, write_card: Callable[[], None]) -> None:
        """Write the model card, and push the checkpoint if the recipe says so."""
        self._write_card = write_card
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
