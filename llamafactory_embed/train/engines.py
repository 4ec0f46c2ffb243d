"""What DDP, DeepSpeed, FSDP and the compiler have to know of a module of ours before they wrap it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.utils import DynamoBackend
from peft import PeftModel
from torch.distributed.fsdp import fully_shard
from transformers import TrainingArguments

from ..model.around_decoder import AroundDecoder
from ..model.compiled import compile_layers
from ..processor import require_compiler


if TYPE_CHECKING:
    from .trainer import WrappedModelTrainer


def compile_for_engines(trainer: WrappedModelTrainer, model: AroundDecoder) -> None:
    """`torch_compile: true`: the layers, and not the whole module, as accelerate would when it prepares it."""
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "`torch_compile: true` is not supported under DeepSpeed and FSDP, whose hooks lie within the layers: "
            "leave it out."
        )
    trainer.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
    backend: str = args.torch_compile_backend
    require_compiler(args.device.type, backend)
    compile_layers(model.decoder, backend, args.torch_compile_mode)


def check_fsdp(is_second_version: bool) -> None:
    """Refuse what cannot shard a module of ours, or fails when it begins to."""
    if not is_second_version:
        raise ValueError(
            "FSDP version 1 is not supported: it gathers parameters only where its outermost module is called, "
            "which an evaluation does not do; set `fsdp_version: 2`."
        )
    if "ignored_params" not in inspect.signature(fully_shard).parameters:  # accelerate gives it to torch 2.6 as well
        raise ValueError(
            f"FSDP does not run with torch {torch.__version__}: install a newer one, or use DDP or DeepSpeed."
        )


def prepare_for_engines(model: Any, args: TrainingArguments) -> None:
    """What DDP, DeepSpeed and FSDP have to know of a module of ours before they wrap it."""
    model._no_split_modules = model.decoder._no_split_modules  # FSDP's units
    model.tie_weights = model.backbone.tie_weights  # FSDP moves parameters, and unties them with that
    if isinstance(model.backbone, PeftModel):
        model.register_load_state_dict_post_hook(allow_missing_frozen_parameters)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every parameter that learns is used in every forward
    # Buffers are constants of rotary positions. DDP sends them in a rank's first forward and agrees on buckets in the
    # first with a graph, and with GradCache that is another forward on each rank: the two would meet.
    args.ddp_broadcast_buffers = False
    if dist.is_initialized():
        # A step may run several forwards. Under reentrant checkpointing every layer of each of them runs a backward
        # by itself, and DDP averages a gradient when only the first of them has reached it.
        not_reentrant = {"use_reentrant": False}
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_enable(not_reentrant)
        if args.gradient_checkpointing:
            args.gradient_checkpointing_kwargs = (args.gradient_checkpointing_kwargs or {}) | not_reentrant


def allow_missing_frozen_parameters(model: torch.nn.Module, keys: Any) -> None:
    """A hook for the checkpoints of adapters, which hold what learns: the base model has been loaded before them."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in learning]
