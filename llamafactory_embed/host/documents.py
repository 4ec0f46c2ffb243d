"""Seam: the host's loader of pretraining data (local files, hubs, streams, splits, `tokenized_path`, caches), with a
processor of ours for the step from texts to tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

from . import contract


if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments, TrainingArguments
    from transformers import PreTrainedTokenizerBase


PROCESSOR = "PretrainDatasetProcessor"  # the name that the host's loader looks its processor up by

LOADER_ARGUMENTS = ("template", "model_args", "data_args", "training_args", "stage", "tokenizer", "processor")


def load_pretraining_data(
    make_processor: Callable[..., Any],
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """The host's `train_dataset` and `eval_dataset` for the format of its stage `pt`."""
    from llamafactory.data import loader

    contract.attribute(loader, PROCESSOR)
    contract.check_signature(contract.attribute(loader, "get_dataset"), *LOADER_ARGUMENTS)
    # It cuts a stream of a local file into as many parts as there are data workers, and reads them part by part. Ours
    # is read in the process of the Trainer: one part keeps the order of rows independent of the workers.
    with (
        mock.patch.object(loader, PROCESSOR, make_processor),
        mock.patch.object(training_args, "dataloader_num_workers", 1),
    ):
        try:
            return loader.get_dataset(None, model_args, data_args, training_args, stage="pt", tokenizer=tokenizer)
        except KeyError as error:
            raise ValueError(
                f"`dataset`: the data have no column {error}: name the column that holds the texts in "
                "dataset_info.json, `columns: {prompt: …}`."
            ) from error
        except RuntimeError as error:
            if isinstance(error.__context__, StopIteration):  # it looked for a first row to show
                raise ValueError("`dataset`: the data have no documents, or only empty ones.") from error
            raise


def asks_for_packing(finetuning_args: FinetuningArguments) -> bool:
    """Whether documents share a row: unless the recipe sets `packing: false`. The parsed value does not tell, because
    the host turns `packing` on for its stage `pt` only."""
    recipe: dict[str, Any] = finetuning_args.recipe
    given = recipe.get("packing")
    words: list[str] = recipe.get("command_line", [])
    for name, value in itertools.pairwise(words):
        if name == "--packing":
            given = value
    for word in words:
        if word.startswith(("packing=", "--packing=")):
            given = word.partition("=")[2]
    return str(given).lower() not in ("false", "no", "0", "off")
