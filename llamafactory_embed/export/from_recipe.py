"""`llamafactory-cli export RECIPE.yaml` for the checkpoint of an embedder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from llamafactory.extras import logging

from ..loading.hub import check_repository, plan_push, push
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import EmbeddingConfig
from .export import export_checkpoint
from .options import ExportOptions
from .weights import find_base


if TYPE_CHECKING:
    from llamafactory.hparams import ModelArguments


logger = logging.get_logger()  # the host's, which shows no messages of other loggers


def export_from_recipe(checkpoint: str, model_args: ModelArguments) -> None:
    """Export with the host's options. Like the host, replace an earlier export."""
    check_options(checkpoint, model_args)
    wants_accelerator = model_args.export_device == "auto" and torch.cuda.is_available()
    options = ExportOptions(
        dtype=model_args.infer_dtype,
        device="cuda" if wants_accelerator else "cpu",
        max_shard_size=f"{model_args.export_size}GB",
        overwrite=True,
    )
    exported = export_checkpoint(checkpoint, model_args.export_dir, options)
    logger.info_rank0(f"Embedder exported to {exported.folder} in {exported.dtype}, checked within 1e-5.")
    for remark in exported.remarks:
        logger.info_rank0(remark)
    if model_args.export_hub_model_id is not None:
        planned = plan_push(exported.folder, model_args.export_hub_model_id, private=False)
        logger.info_rank0(f"Uploaded: {push(exported.folder, planned, token=model_args.hf_hub_token)}")


def check_options(checkpoint: str, model_args: ModelArguments) -> None:
    """Refuse options that the export of an embedder does not have, and names that contradict the checkpoint."""
    if model_args.export_dir is None:
        raise ValueError("`export_dir` is missing: name the folder to write.")
    for name in ("export_quantization_bit", "quantization_bit"):
        if getattr(model_args, name) is not None:
            raise ValueError(f"`{name}` has no meaning for the export of an embedder: leave it out.")
    if model_args.export_legacy_format:
        raise ValueError("`export_legacy_format: true`: an embedder is exported as safetensors only, leave it out.")
    if model_args.export_hub_model_id is not None:
        check_repository(model_args.export_hub_model_id)
    check_checkpoint_names(checkpoint, model_args)


def check_checkpoint_names(checkpoint: str, model_args: ModelArguments) -> None:
    """Refuse a recipe that names another base model, or other adapters, than the checkpoint was trained on."""
    config = EmbeddingConfig.load(checkpoint)
    if not (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file():
        return
    base = find_base(checkpoint, config)
    if not is_same(base, model_args.model_name_or_path):
        raise ValueError(
            f"`model_name_or_path: {model_args.model_name_or_path}` is not the base model of {checkpoint}, which was "
            f"trained on {base}: name that."
        )
    others = model_args.adapter_name_or_path[:-1]
    merged = config.merged_adapters
    if others and not (len(others) == len(merged) and all(map(is_same, others, merged))):
        raise ValueError(
            f"`adapter_name_or_path` names {', '.join(others)} before {checkpoint}, which was trained on "
            f"{', '.join(merged) or 'the base model alone'}: name only the checkpoint."
        )


def is_same(one: str, other: str) -> bool:
    """Whether two names mean the same folder, or the same model on the hub."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return one == other
