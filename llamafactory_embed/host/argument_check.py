"""The host's checks of a recipe's options, without the run: nothing is started, no device is looked for.

Its argument classes and its parser work on a stand-in for its training arguments, while the names in its parser module
that would ask the machine are replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from ..stages import registry
from ..stages.host_settings import check_that_the_base_is_kept, refuse_unsupported
from ..stages.stage import RUN_ARGUMENTS, Stage


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the host's checks, which log and warn about a run that does not take place."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def untouched_environment() -> Iterator[None]:
    """Restore the environment afterwards: training arguments pass settings to Accelerate in variables, which must not
    reach the next check or the caller."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"
        yield


def sets_training_options(options: Collection[Any]) -> bool:
    """Whether any of the options is one of the host's training arguments: `chat`, `api` and `export` take none."""
    from llamafactory.hparams import parser

    return any(option.name in options for option in dataclasses.fields(parser.TrainingArguments))


def list_argument_classes(is_training: bool) -> list[type]:
    """The dataclasses that the host makes of a recipe, with the options of plugin stages among them."""
    from llamafactory.hparams import parser

    if not is_training:
        return list(parser._INFER_ARGS)
    classes = [parser.ModelArguments, parser.DataArguments, parser.FinetuningArguments, parser.GeneratingArguments]
    return [*classes, parser.TrainingArguments]


def build_arguments(argument_class: type, options: dict[str, Any]) -> Any:
    """Make an instance of one of the host's argument classes; training arguments leave the machine alone."""
    import torch
    from llamafactory.hparams.parser import TrainingArguments
    from transformers.training_args import ParallelMode

    class UnstartedTrainingArguments(TrainingArguments):
        """The host's checks, which start neither a device nor DeepSpeed nor a process group."""

        _setup_devices = torch.device("cpu")
        _n_gpu = 1
        distributed_state = None
        should_log = False

        def __post_init__(self) -> None:
            hidden = {"use_cpu": True, "tf32": None, "deepspeed": None}
            given = {name: getattr(self, name) for name in hidden}
            self.__dict__.update(hidden)
            super().__post_init__()
            self.__dict__.update(given)

        @property
        def parallel_mode(self) -> Any:
            return ParallelMode.DISTRIBUTED if self.deepspeed or self.fsdp else ParallelMode.NOT_PARALLEL

    names = {declared.name for declared in dataclasses.fields(argument_class) if declared.init}
    kind = UnstartedTrainingArguments if argument_class is TrainingArguments else argument_class
    return kind(**{name: value for name, value in options.items() if name in names})


def compare_arguments(options: dict[str, Any], is_training: bool) -> list[str]:
    """The checks of arguments against each other, the host's and the stage's; returned are the packages that the host
    would demand."""
    parsed, demanded = parse_arguments(options, is_training)
    if is_training:
        _check_stage(parsed)
    return demanded


def parse_arguments(options: dict[str, Any], is_training: bool) -> tuple[tuple[Any, ...], list[str]]:
    """The host's argument objects after its own checks, in its order, and the packages that it would demand. Its
    parser is handed instances that are built here."""
    import torch
    import transformers
    from llamafactory.hparams import parser
    from packaging.requirements import Requirement

    class Builder:
        """In the place of `HfArgumentParser`."""

        def __init__(self, argument_classes: list[type]) -> None:
            self.argument_classes = argument_classes

        def parse_dict(self, options: dict[str, Any], allow_extra_keys: bool) -> tuple[Any, ...]:
            return tuple(build_arguments(argument_class, options) for argument_class in self.argument_classes)

    demanded: list[str] = []
    with (
        mock.patch.multiple(
            parser,
            HfArgumentParser=Builder,
            check_version=lambda requirement, mandatory=False: demanded.append(requirement),
            is_torch_bf16_gpu_available=lambda: True,
            is_deepspeed_zero3_enabled=lambda: deepspeed_stage(options.get("deepspeed")) == 3,
            get_current_device=lambda: torch.device("cpu"),
            get_last_checkpoint=lambda folder: None,
            CHECKPOINT_NAMES=(),
        ),
        mock.patch.object(transformers, "set_seed"),
    ):
        parsed = parser.get_train_args(options) if is_training else parser.get_infer_args(options)
    return parsed, [Requirement(requirement).name for requirement in demanded]


def _check_stage(parsed: tuple[Any, ...]) -> None:
    stage = registry.load_registry().find(parsed[RUN_ARGUMENTS.index("finetuning_args")].stage)
    if stage is not None:
        check_stage(stage, parsed)


def check_stage(stage: Stage, parsed: Sequence[Any]) -> None:
    """Refuse what a stage cannot do with these arguments: options of the host that it does not support, and what the
    stage itself refuses whatever the data are."""
    settings = settings_of(stage, parsed)
    refuse_unsupported(settings)
    check_that_the_base_is_kept(settings["train_from_scratch"], settings["finetuning_type"])
    stage.check_arguments(*parsed)


def settings_of(stage: Stage, parsed: Sequence[Any]) -> dict[str, Any]:
    """The values of all options, by name."""
    settings = {name: value for args in parsed for name, value in vars(args).items()} | {"stage": stage.name}
    training_args = parsed[RUN_ARGUMENTS.index("training_args")]
    if training_args.world_size == 1:
        del settings["average_tokens_across_devices"]  # the Trainer's arguments turn it off where it has no effect
    return settings


def deepspeed_stage(config: Any) -> int | None:
    """The ZeRO stage of a DeepSpeed configuration: a mapping, JSON, or a file with JSON."""
    if isinstance(config, str):
        config = json.loads(config if config.startswith("{") else Path(config).read_text(encoding="utf-8"))
    return (config or {}).get("zero_optimization", {}).get("stage")
