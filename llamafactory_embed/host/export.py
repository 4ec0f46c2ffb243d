"""Seam: `llamafactory-cli export`, and the Export tab of LLaMA Board, which calls the same function.

An embedder's checkpoint is more than its language model: it is written with its pooling, prompts and attention, as
`llamafactory-embed export` writes it. The host exports everything else; for a model that was trained to predict masked
tokens, `masked_export` adds what the host does not know.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ..hparams.embedding import EmbeddingOptions
from ..model.embedding_config import CONFIG_NAME
from ..stages.registry import load_registry
from . import contract, masked_export


if TYPE_CHECKING:
    from llamafactory.hparams import FinetuningArguments, ModelArguments


EXPORTER = "llamafactory_embed.export.from_recipe"  # by name: `export` may import `host`, not the reverse


def apply(tuner: Any) -> None:
    """Replace the host's export; part of the seam of `llamafactory.train.tuner`, called by `dispatch`."""
    host_export_model = contract.attribute(tuner, "export_model")
    contract.check_signature(host_export_model, "args")
    contract.check_signature(contract.attribute(tuner, "get_infer_args"), "args")
    masked_export.check(tuner)

    def export_model(args: dict[str, Any] | None = None) -> None:
        model_args, _, finetuning_args, _ = tuner.get_infer_args(args)
        if is_embedder(model_args, finetuning_args):
            importlib.import_module(EXPORTER).export_from_recipe(find_checkpoint(model_args), model_args)
            return
        with masked_export.completed(tuner, model_args):
            host_export_model(args)

    tuner.export_model = export_model


def find_checkpoint(model_args: ModelArguments) -> str:
    """The last adapter that the recipe names, or its model."""
    if not model_args.adapter_name_or_path:
        return model_args.model_name_or_path
    return os.path.join(model_args.adapter_name_or_path[-1], model_args.adapter_folder or "")


def is_embedder(model_args: ModelArguments, finetuning_args: FinetuningArguments) -> bool:
    """Whether the stage trains embedders or the folder is the checkpoint of one: a recipe for export may leave `stage`
    out, as the host's examples and the Board do."""
    stage = load_registry().find(finetuning_args.stage)
    if stage is not None and issubclass(stage.options, EmbeddingOptions):
        return True
    return os.path.isfile(os.path.join(find_checkpoint(model_args), CONFIG_NAME))
