"""Seam: the argument parser. The options of all stages join the host's `FinetuningArguments`."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from ..hparams.option import default_of, make_options
from ..hparams.serving import ServingOptions
from ..stages.registry import Registry, load_registry
from ..stages.stage import HOST_STAGES, Stage
from . import contract
from .run_folder import last_whole_checkpoint


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments


# Lists of argument classes in the host's parser module; all of them hold FinetuningArguments, the last one only where
# its package is installed. Newer hosts have more lists.
ARGUMENT_LISTS = ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS", "_TRAIN_MCA_ARGS")

# Options of the host that hand a run to another training engine; a host may lack one.
OTHER_ENGINES = ("use_mca", "use_megatron_bridge", "use_hyper_parallel")


def apply(parser: Any) -> None:
    """Replace `FinetuningArguments` wherever the parser names it: unknown keys are refused as before, and the help
    text lists ours."""
    host_class = contract.attribute(parser, "FinetuningArguments")
    for name in ARGUMENT_LISTS:
        contract.attribute(parser, name)
    lists = [value for value in vars(parser).values() if isinstance(value, list) and host_class in value]
    contract.check_signature(contract.attribute(parser, "get_train_args"), "args")
    if "stage" not in {field.name for field in dataclasses.fields(host_class)}:
        raise contract.HostMismatchError("LLaMA-Factory's FinetuningArguments has no `stage` any more.")

    registry = load_registry()
    taken = {
        field.name: argument_class.__name__
        for argument_class in contract.attribute(parser, "_TRAIN_ARGS")
        for field in dataclasses.fields(argument_class)
    }
    taken |= {field.name: ServingOptions.__name__ for field in dataclasses.fields(ServingOptions)}
    reject_conflicts(registry, taken)
    registry.report_problems()

    extended = extend_finetuning_arguments(host_class, registry)
    for argument_classes in lists:
        argument_classes[:] = [extended if each is host_class else each for each in argument_classes]
    parser.FinetuningArguments = extended
    serving = extend_by_serving_options(extended)
    parser._INFER_ARGS[:] = [serving if each is extended else each for each in parser._INFER_ARGS]

    contract.check_signature(contract.attribute(parser, "get_last_checkpoint"), "folder")
    parser.get_last_checkpoint = last_whole_checkpoint


def reject_conflicts(registry: Registry, taken: dict[str, str]) -> None:
    """An option may be shared by stages that declare it alike; anything else would change under a user's hands."""
    declared: dict[str, tuple[Stage, Any]] = {}
    for stage in list(registry.stages.values()):
        hints = typing.get_type_hints(stage.options)
        for field in dataclasses.fields(stage.options):
            signature = (hints[field.name], field.default)
            if field.name in taken:
                registry.reject(
                    stage.name,
                    f"Stage {stage.name!r} of {registry.owner(stage.name)} cannot be used: its option "
                    f"`{field.name}` is already an option of LLaMA-Factory ({taken[field.name]}).",
                )
                break
            first, first_signature = declared.setdefault(field.name, (stage, signature))
            if first_signature != signature:
                registry.reject(
                    stage.name,
                    f"Stage {stage.name!r} of {registry.owner(stage.name)} cannot be used: stage {first.name!r} of "
                    f"{registry.owner(first.name)} declares its option `{field.name}` differently.",
                )
                break


def extend_finetuning_arguments(host_class: type, registry: Registry) -> type:
    """A subclass of the host's dataclass with the new values of `stage` and the options of all stages."""
    names = (*HOST_STAGES, *registry.stages)
    stage_field = next(field for field in dataclasses.fields(host_class) if field.name == "stage")
    fields: dict[str, tuple[str, Any, Any]] = {
        "stage": (
            "stage",
            typing.Literal[names],
            dataclasses.field(default=stage_field.default, metadata=dict(stage_field.metadata)),
        )
    }
    for stage in registry.stages.values():
        hints = typing.get_type_hints(stage.options)
        for field in dataclasses.fields(stage.options):
            fields.setdefault(field.name, (field.name, hints[field.name], _copy_field(field, stage.name)))

    def post_init(self: Any) -> None:
        host_class.__post_init__(self)  # type: ignore[attr-defined]
        self.stage_options = read_stage_options(self, registry)

    return dataclasses.make_dataclass(
        host_class.__name__,
        list(fields.values()),
        bases=(host_class,),
        namespace={"__post_init__": post_init, "__doc__": host_class.__doc__, "__module__": __name__},
    )


def extend_by_serving_options(extended: type) -> type:
    """The class for recipes that train nothing, with the options of the server of embeddings: `llamafactory-cli api`
    reads them as `finetuning_args.serving_options`."""
    hints = typing.get_type_hints(ServingOptions)
    declared = dataclasses.fields(ServingOptions)
    names = [field.name for field in declared]

    def post_init(self: Any) -> None:
        extended.__post_init__(self)  # type: ignore[attr-defined]
        self.serving_options = make_options(ServingOptions, {name: getattr(self, name) for name in names})

    return dataclasses.make_dataclass(
        extended.__name__,
        [(field.name, hints[field.name], _copy_field(field, "api")) for field in declared],
        bases=(extended,),
        namespace={"__post_init__": post_init, "__doc__": extended.__doc__, "__module__": __name__},
    )


def read_stage_options(finetuning_args: FinetuningArguments, registry: Registry) -> Any:
    """The chosen stage's options as its own dataclass, checked; options of other stages are refused."""
    selected = registry.find(finetuning_args.stage)
    names = {field.name for field in dataclasses.fields(selected.options)} if selected is not None else set()
    for stage in registry.stages.values():
        for field in dataclasses.fields(stage.options):
            if field.name not in names and getattr(finetuning_args, field.name) != default_of(field):
                raise ValueError(
                    f"`{field.name}` is an option of {_stages_with(field.name, registry)}, "
                    f"not of `stage: {finetuning_args.stage}`."
                )

    if selected is None:
        return None

    refuse_other_engines(finetuning_args, selected)
    return make_options(selected.options, {name: getattr(finetuning_args, name) for name in names})


def refuse_other_engines(finetuning_args: FinetuningArguments, stage: Stage) -> None:
    """A training engine of the host's would not run our workflow but the carrier stage's."""
    for engine in OTHER_ENGINES:
        if getattr(finetuning_args, engine, False):
            raise ValueError(f"`stage: {stage.name}` does not run under `{engine}`: unset it.")


def _stages_with(option_name: str, registry: Registry) -> str:
    stages = [
        f"`stage: {stage.name}`"
        for stage in registry.stages.values()
        if option_name in {field.name for field in dataclasses.fields(stage.options)}
    ]
    return " and ".join(stages)


def _copy_field(field: dataclasses.Field[Any], reader: str) -> Any:
    """The same field for the parser, which takes every key of the metadata for an argument of argparse's own and
    reads `%` in a help text as a format."""
    help_text = field.metadata["help"].replace("%", "%%")
    metadata = {"help": f"[{reader}] {help_text}"}
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=metadata)
    return dataclasses.field(default=field.default, metadata=metadata)
