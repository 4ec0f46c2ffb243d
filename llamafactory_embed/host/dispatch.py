"""Seam: the tuner, which parses the arguments, assembles the callbacks and calls the workflow of the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..stages.host_settings import refuse_unsupported
from ..stages.registry import load_registry
from ..stages.stage import RUN_ARGUMENTS
from . import contract, export
from .ray_cluster import check_cluster, fit_placement_group


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


# The branch of the host's dispatcher that hands on all six arguments.
CARRIER_STAGE = "sft"


def apply(tuner: Any) -> None:
    """Send our stages through the host's own dispatcher.

    `_training_function` parses, assembles the callbacks and then compares `finetuning_args.stage` with the stages it
    knows. So that none of it is copied, a stage of ours travels under the name of the stage whose branch hands on all
    six arguments, and gets its name back where that branch calls its workflow.
    """
    host_get_train_args = contract.attribute(tuner, "get_train_args")
    host_run_sft = contract.attribute(tuner, "run_sft")
    contract.check_signature(contract.attribute(tuner, "_training_function"), "config")
    contract.check_signature(host_get_train_args, "args")
    contract.check_signature(host_run_sft, *RUN_ARGUMENTS)

    def get_train_args(args: Any = None) -> tuple[Any, ...]:
        parsed = host_get_train_args(args)
        finetuning_args = parsed[RUN_ARGUMENTS.index("finetuning_args")]
        if load_registry().find(finetuning_args.stage) is not None:
            refuse_unsupported(settings_of(parsed))
            finetuning_args.recipe = recipe_of(args)  # a checkpoint keeps the recipe it was made with
            finetuning_args.plugin_stage = finetuning_args.stage
            finetuning_args.stage = CARRIER_STAGE
        return parsed

    def run_carrier_stage(*args: Any, **kwargs: Any) -> None:
        finetuning_args = args[RUN_ARGUMENTS.index("finetuning_args")]
        name = getattr(finetuning_args, "plugin_stage", None)
        stage = load_registry().find(name) if name is not None else None
        if stage is None:
            host_run_sft(*args, **kwargs)
        else:
            finetuning_args.stage = stage.name
            tell_deepspeed(args[RUN_ARGUMENTS.index("training_args")])
            stage.load_run()(*args, **kwargs)

    tuner.get_train_args = get_train_args
    tuner.run_sft = run_carrier_stage
    _apply_ray(tuner)
    export.apply(tuner)


def tell_deepspeed(training_args: TrainingArguments) -> None:
    """Let DeepSpeed know of the other processes. On a CPU the Trainer starts torch.distributed without it, and ZeRO-3,
    which cuts a model into shards while it is loaded, would take this process for the only one."""
    if training_args.deepspeed and training_args.use_cpu:
        from deepspeed import comm

        if not comm.is_initialized():
            comm.init_distributed(dist_backend="gloo")


def settings_of(parsed: Sequence[Any]) -> dict[str, Any]:
    """The values of all options, by name."""
    settings = {name: value for args in parsed for name, value in vars(args).items()}
    training_args: TrainingArguments = parsed[RUN_ARGUMENTS.index("training_args")]
    if training_args.world_size == 1:
        del settings["average_tokens_across_devices"]  # the Trainer's arguments turn it off where it has no effect
    return settings


def recipe_of(args: dict[str, Any] | list[str]) -> dict[str, Any]:
    """The recipe as it was given: a YAML file's keys, or the flags of the command line."""
    if isinstance(args, dict):
        return dict(args)
    return {"command_line": list(args)}


def _apply_ray(tuner: Any) -> None:
    host_ray_training_function = contract.attribute(tuner, "_ray_training_function")
    host_get_placement_group = contract.attribute(tuner, "get_placement_group")
    contract.check_signature(host_ray_training_function, "ray_args", "config")
    contract.check_signature(host_get_placement_group, "num_workers")

    def ray_training_function(ray_args: Any, config: dict[str, Any]) -> None:
        check_cluster(ray_args)
        host_ray_training_function(ray_args, config)

    def get_placement_group(num_workers: int) -> Any:
        return host_get_placement_group(fit_placement_group(num_workers))

    tuner._ray_training_function = ray_training_function
    tuner.get_placement_group = get_placement_group
