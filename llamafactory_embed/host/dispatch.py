"""Seam: the tuner, which parses the arguments, assembles the callbacks and calls the workflow of the stage."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..files import write_text
from ..hparams.secrets import secrets_of, without_secrets, words_without_secrets
from ..stages.registry import load_registry
from ..stages.stage import RUN_ARGUMENTS
from . import contract, export
from .argument_check import check_stage
from .options import refuse_other_engines
from .run_folder import alone_in_folder, require_whole_checkpoint
from .same_data import digests_of_data, require_same_data


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


# The branch of the host's dispatcher that hands on all six arguments.
CARRIER_STAGE = "sft"

# What the host reserves for each Ray worker, in `get_placement_group`; a small cluster never has them, and would wait.
CPUS_PER_WORKER = 10

# The name under which LLaMA Board writes the recipe of a run into its folder.
BOARD_RECIPE_NAME = "training_args.yaml"


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
        stage = load_registry().find(finetuning_args.stage)
        if stage is not None:
            refuse_other_engines(finetuning_args, stage)  # the host may have read the environment: USE_MCA=1
            finetuning_args.recipe = recipe_of(args, parsed)  # a checkpoint keeps the recipe it was made with
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
            check_stage(stage, args[: len(RUN_ARGUMENTS) - 1])
            training_args = args[RUN_ARGUMENTS.index("training_args")]
            tell_deepspeed(training_args)
            with alone_in_folder(training_args):
                clean_board_recipe(training_args, secrets_of(*args[: len(RUN_ARGUMENTS) - 1]))
                require_whole_checkpoint(training_args)
                data_args = args[RUN_ARGUMENTS.index("data_args")]
                finetuning_args.data_digests = digests_of_data(data_args, training_args)
                require_same_data(finetuning_args, training_args)
                stage.load_run()(*with_start(args), **kwargs)

    tuner.get_train_args = get_train_args
    tuner.run_sft = run_carrier_stage
    _apply_ray(tuner)
    export.apply(tuner)


def with_start(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a stage, over what `model_name_or_path` is made of."""
    from ..loading.start import resolve_start  # late: it imports transformers

    parsed = dict(zip(RUN_ARGUMENTS, args, strict=False))
    parsed["model_args"] = resolve_start(parsed["model_args"], parsed["finetuning_args"], parsed["training_args"])
    return (*parsed.values(), *args[len(parsed) :])


def tell_deepspeed(training_args: TrainingArguments) -> None:
    """Let DeepSpeed know of the other processes. On a CPU the Trainer starts torch.distributed without it, and ZeRO-3,
    which cuts a model into shards while it is loaded, would take this process for the only one."""
    if training_args.deepspeed and training_args.use_cpu:
        from deepspeed import comm

        if not comm.is_initialized():
            comm.init_distributed(dist_backend="gloo")


def recipe_of(args: dict[str, Any] | list[str], parsed: Iterable[object]) -> dict[str, Any]:
    """The recipe as it was given, a YAML file's keys or the flags of the command line, but without secrets: every
    checkpoint keeps it."""
    secrets = secrets_of(*parsed)
    if isinstance(args, dict):
        return without_secrets(args, secrets)
    return {"command_line": words_without_secrets(args, secrets)}


def clean_board_recipe(training_args: TrainingArguments, secrets: Collection[str]) -> None:
    """LLaMA Board writes the recipe of a run into the run's own folder. When the arguments are parsed, all processes
    have read it."""
    if training_args.output_dir is None or not training_args.should_save:
        return
    path = Path(training_args.output_dir, BOARD_RECIPE_NAME)
    if sys.argv[1:2] == [str(path)] and path.is_file():
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        write_text(path, yaml.safe_dump(without_secrets(recipe, secrets), sort_keys=False, allow_unicode=True))


def _apply_ray(tuner: Any) -> None:
    host_ray_training_function = contract.attribute(tuner, "_ray_training_function")
    host_get_placement_group = contract.attribute(tuner, "get_placement_group")
    contract.check_signature(host_ray_training_function, "ray_args", "config")
    contract.check_signature(host_get_placement_group, "num_workers")

    def ray_training_function(ray_args: Any, config: dict[str, Any]) -> None:
        check_cluster(ray_args)
        with lost_workers_named():
            host_ray_training_function(ray_args, config)

    def get_placement_group(num_workers: int) -> Any:
        return host_get_placement_group(fit_placement_group(num_workers))

    tuner._ray_training_function = ray_training_function
    tuner.get_placement_group = get_placement_group


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """A Ray worker that fails or is killed ends the run: the others may wait for it, so they end, too."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

    try:
        yield
    except RayTaskError as error:
        ray.shutdown()
        if not isinstance(error.cause, ValueError):
            raise
        raise ValueError(str(error.cause)) from None  # what the worker says, and not where in it
    except (RayActorError, OutOfMemoryError, WorkerCrashedError) as error:
        ray.shutdown()
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise ValueError(
            f"A Ray worker of this run ended ({reason}), killed by somebody or because its machine had no memory "
            "left: the same recipe goes on from the last whole checkpoint."
        ) from None


def check_cluster(ray_args: Any) -> None:
    """Start Ray as the host would, and refuse a cluster that could only wait for ever."""
    import ray

    if not ray.is_initialized():
        ray.init(**(ray_args.ray_init_kwargs or {}))

    workers = ray_args.ray_num_workers
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers * CPUS_PER_WORKER:
        ray.shutdown()
        raise ValueError(
            f"LLaMA-Factory reserves {CPUS_PER_WORKER} CPUs for each Ray worker, but the cluster has {cpus} for "
            f"`ray_num_workers: {workers}`: add nodes, or give a local cluster more logical CPUs with "
            f"`ray_init_kwargs: {{num_cpus: {workers * CPUS_PER_WORKER}}}`."
        )


def fit_placement_group(devices: int) -> int:
    """How many bundles to reserve. The host reserves one for each device of the cluster; where the only devices are
    CPUs that would be ten times more CPUs than there are."""
    from llamafactory.extras.misc import get_device_name

    return devices // CPUS_PER_WORKER if get_device_name() == "cpu" else devices
