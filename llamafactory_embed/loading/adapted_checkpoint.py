"""`checkpoint_dir`: start from the weights of an adapted model, in the layout of transformers or of DiffuLLaMA.

The checkpoint becomes a folder in the layout of transformers, which the host then loads like any other (quantized,
sharded, with adapters). The same happens to a `model_name_or_path` in DiffuLLaMA's layout, of whose weights
transformers would find none.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .wrapped_checkpoint import convert_checkpoint, fetch, is_wrapped


if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments, TrainingArguments


CONVERTED_FOLDER = "converted_checkpoint"  # below `output_dir`


def start_from_checkpoint(
    model_args: ModelArguments, checkpoint_dir: str | None, training_args: TrainingArguments
) -> Any:
    """The host's model arguments, with the checkpoint in the place of the base model's weights."""
    option, name = "checkpoint_dir", checkpoint_dir
    if name is None:
        option, name = "model_name_or_path", model_args.model_name_or_path
        if not (os.path.isdir(name) and is_wrapped(name)):
            return model_args
    hub = {"token": model_args.hf_hub_token, "cache_dir": model_args.cache_dir}
    destination = Path(training_args.output_dir, CONVERTED_FOLDER)
    with training_args.main_process_first(desc="converting the checkpoint"):
        try:
            source = fetch(name, **hub)
            if source.resolve() == destination.resolve():  # an earlier run has converted it
                return replaced(model_args, destination)
            if training_args.process_index == 0 and destination.is_dir():
                shutil.rmtree(destination)  # of an earlier run, perhaps from another checkpoint
            if not destination.is_dir():
                convert_checkpoint(
                    source,
                    model_args.model_name_or_path,
                    destination,
                    trust_remote_code=model_args.trust_remote_code,
                    revision=model_args.model_revision,
                    **hub,
                )
        except ValueError as error:
            raise ValueError(f"`{option}`: {error}") from error
    return replaced(model_args, destination)


def replaced(model_args: ModelArguments, folder: Path) -> Any:
    """The same arguments over another model."""
    started = copy.copy(model_args)
    started.model_name_or_path = str(folder)
    return started
