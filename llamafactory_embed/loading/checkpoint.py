"""Checkpoints of embedders and diffusion language models: written in training, loaded to be served.

Nothing here needs the host, whose model loader takes its time to import.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attention_patch import Backend

from ..files import whole_file
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from ..model.families import Family, find_family
from ..model.mask_token import MaskedTokenRecord, learn_mask_embedding, load_mask_embedding
from ..model.tensor_files import load_safetensors
from .adapted_checkpoint import convert_checkpoint, is_wrapped
from .masked_tokens import MaskedTokenRequest, MaskedTokenSettings, resolve_masked_tokens
from .repository import Repository
from .weights import load_backbone_weights, load_language_model, save_backbone


POOLER_NAME = "pooler.safetensors"


# --------------------------------------------------------------------------------------------------------------------
# Embedders
# --------------------------------------------------------------------------------------------------------------------


def save_checkpoint(model: EmbeddingModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write adapter or weights, pooler with the layers behind it, and configuration. `state_dict` is that of the whole
    model if an engine (FSDP, ZeRO-3) had to collect it."""
    folder = Path(folder)
    save_backbone(model.backbone, folder, state_dict)
    pooling = model.pooling_weights(state_dict)
    if pooling:
        with whole_file(folder / POOLER_NAME) as temporary:
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in pooling.items()}, temporary)
    model.embedding_config.save(folder)


def load_checkpoint_weights(model: EmbeddingModel, folder: str | Path) -> None:
    """Put the weights of a checkpoint into a model of the same shape, to resume or to go back to the best one."""
    folder = Path(folder)
    load_backbone_weights(model.backbone, folder)
    load_pooling(model, folder)


def load_embedding_model(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> EmbeddingModel:
    """Load a checkpoint for inference, its adapters merged in their order."""
    config = EmbeddingConfig.load(folder)
    model = EmbeddingModel(load_backbone(folder, config, dtype), config, backend=backend)
    load_pooling(model, Path(folder))
    return model.requires_grad_(False).eval().to(device or default_device())


def load_backbone(folder: str | Path, config: EmbeddingConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The language model of a checkpoint."""
    return load_language_model(
        folder, config.base_model, config.merged_adapters, dtype=dtype or "auto", with_head=False
    )


def load_pooling(model: EmbeddingModel, folder: Path) -> None:
    """Put a checkpoint's pooler, and the layers behind it, into a model of the same shape."""
    if not model.pooling_weights():
        return
    path = folder / POOLER_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {POOLER_NAME}, which `{model.embedding_config.pooling_options}` needs.")
    model.load_pooling_weights(load_safetensors(path))


# --------------------------------------------------------------------------------------------------------------------
# Diffusion language models
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedDiffusionModel:
    """What is needed to generate text and to score it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: MaskedTokenSettings
    family: Family | None


def load_diffusion_model(
    name: str | Path,
    request: MaskedTokenRequest | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "auto",
) -> LoadedDiffusionModel:
    """Load a checkpoint for inference by its folder or its hub name (`name@revision`): full weights, an adapter
    (merged, with its mask embedding) or a checkpoint in DiffuLLaMA's layout. The request takes precedence over what
    the checkpoint says."""
    folder = Repository.open(name).with_weights()
    if not is_wrapped(folder):
        return _load_diffusion_model(folder, str(name), request, device, dtype)
    check_is_complete(folder)
    with tempfile.TemporaryDirectory() as unwrapped:
        converted = convert_checkpoint(folder, str(folder), Path(unwrapped, "converted"))
        return _load_diffusion_model(converted, str(name), request, device, dtype)


def _load_diffusion_model(
    folder: Path,
    name: str,
    request: MaskedTokenRequest | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str,
) -> LoadedDiffusionModel:
    record = MaskedTokenRecord.find([folder])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if record is None:
        model = load_language_model(folder, dtype=dtype)
    else:
        model = load_language_model(folder, record.base_model, record.merged_adapters, dtype=dtype)
    settings = resolve_masked_tokens(request, record, model.config, tokenizer)
    mask = settings.mask
    embedding = load_mask_embedding([folder])
    if embedding is not None:
        learn_mask_embedding(model, mask, embedding).requires_grad_(False)
    elif mask.is_added or mask.id >= model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"{name} has no embedding for its mask token {mask.text!r}: it was not trained as a diffusion language "
            "model with that token; name the token that it was trained with."
        )
    model = model.eval().to(device or default_device())
    return LoadedDiffusionModel(model, tokenizer, settings, find_family(model.config))


def check_is_complete(folder: Path) -> None:
    """Weights in DiffuLLaMA's layout may lie alone: its own programs take the rest from the base model."""
    absent = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} holds weights in DiffuLLaMA's layout without {' and '.join(absent)}: copy these of the model "
            "that was adapted beside the weights, or name both in a recipe (`model_name_or_path`, `checkpoint_dir`)."
        )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
