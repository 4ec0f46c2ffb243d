"""What a recipe starts from, in the host's words: a published checkpoint named in `model_name_or_path` may be a chain
of adapters, have a revision, or lie in a layout that transformers does not load."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from .adapted_checkpoint import start_from_checkpoint
from .adapter_chain import find_chain
from .repository import Repository, split_revision


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments, TrainingArguments


logger = logging.getLogger(__name__)

WITH_ADAPTERS = ("lora", "oft")  # values of `finetuning_type`


def resolve_start(
    model_args: ModelArguments, finetuning_args: FinetuningArguments, training_args: TrainingArguments
) -> ModelArguments:
    """The arguments over a model of one piece and a list of adapters, which the host loads like any other.

    A chain in `model_name_or_path` is a model: it is merged, and what trains is a new adapter, unless
    `adapter_name_or_path` names one to go on with.
    """
    resolved = without_revisions(model_args)
    chain = open_chain(resolved)
    if len(chain) > 1:
        refuse_what_cannot_merge(resolved, finetuning_args)
        below = [place_of(each) for each in chain[1:]]
        named = resolved.adapter_name_or_path or []
        if resolved is model_args:
            resolved = copy.copy(model_args)
        resolved.model_name_or_path = place_of(chain[0])
        resolved.adapter_name_or_path = [*below, *(name for name in named if name not in below)]
        if not named and training_args.do_train:
            finetuning_args.create_new_adapter = True
        logger.warning(
            "`model_name_or_path: %s` is the adapters %s on %s.", model_args.model_name_or_path, below, chain[0].name
        )
    if getattr(finetuning_args.stage_options, "checkpoint_dir", None) is None:
        resolved = start_from_checkpoint(resolved, None, training_args)
    return resolved


def without_revisions(model_args: ModelArguments) -> ModelArguments:
    """`name@revision` in the host's words: it has one revision for the model and all adapters, so that adapters with
    one of their own become the folders in which they lie."""
    name, revision = split_revision(model_args.model_name_or_path)
    adapters = [split_revision(each) for each in model_args.adapter_name_or_path or []]
    if revision is None and not any(own for _, own in adapters):
        return model_args
    changed = copy.copy(model_args)
    if revision is not None:
        changed.model_name_or_path, changed.model_revision = name, revision
    hub = ask_hub(model_args)
    if adapters:
        opened = [Repository.open(each, **hub) for each in model_args.adapter_name_or_path]
        changed.adapter_name_or_path = [str(each.with_weights()) for each in opened]
    return changed


def open_chain(model_args: ModelArguments) -> list[Repository]:
    """What `model_name_or_path` is made of. A name that cannot be opened is left to the host's own sentence."""
    name = model_args.model_name_or_path
    is_at_main = model_args.model_revision in (None, "main")
    try:
        start = Repository.open(name if is_at_main else f"{name}@{model_args.model_revision}", **ask_hub(model_args))
    except ValueError:
        return []
    if not start.is_adapter:
        return [start]
    return find_chain(name if is_at_main else f"{name}@{model_args.model_revision}", None, None, ask_hub(model_args))


def refuse_what_cannot_merge(model_args: ModelArguments, finetuning_args: FinetuningArguments) -> None:
    """Only adapters can be trained on a chain of adapters, and only weights that are not quantized can be merged."""
    name = model_args.model_name_or_path
    advice = f"export it as a model of one piece first (`llamafactory-embed export {name} FOLDER`)"
    if finetuning_args.finetuning_type not in WITH_ADAPTERS:
        raise ValueError(
            f"`model_name_or_path: {name}` is a chain of adapters, into which `finetuning_type: "
            f"{finetuning_args.finetuning_type}` does not train: use `lora`, or {advice}."
        )
    if model_args.quantization_bit is not None:
        raise ValueError(
            f"`model_name_or_path: {name}` is a chain of adapters, which cannot be merged into quantized weights: "
            f"leave out `quantization_bit`, or {advice}."
        )


def place_of(repository: Repository) -> str:
    """Where the host finds it: a folder, or a name on the hub."""
    if repository.is_local or repository.revision is None:
        return repository.name
    return str(repository.with_weights())


def ask_hub(model_args: ModelArguments) -> dict[str, Any]:
    """How the hub is asked for files."""
    return {"token": model_args.hf_hub_token, "cache_dir": model_args.cache_dir}
