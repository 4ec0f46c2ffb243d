"""A folder with a diffusion language model → a `Sampler`: full weights or an adapter, trained here or published."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..loading.wrapped_checkpoint import convert_checkpoint, fetch, is_wrapped
from ..model.families import family_of, find_family
from ..model.mask_token import (
    MaskedTokenRecord,
    MaskToken,
    find_mask_token,
    learn_mask_embedding,
    load_mask_embedding,
)
from .sampler import Sampler
from .settings import SamplingSettings


def load_sampler(
    name: str | Path,
    settings: SamplingSettings | None = None,
    *,
    mask_token: str | None = None,
    shift: bool | None = None,
    block_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "auto",
) -> Sampler:
    """Load a checkpoint by its folder or hub name, also one in DiffuLLaMA's layout. Mask token, shift and blocks are
    what it was trained with, if it says so (`masked_tokens.json`), else those of its family; `mask_token`, `shift` and
    `block_size` (0: no blocks) say otherwise."""
    folder = fetch(name)
    if is_wrapped(folder):
        check_is_complete(folder)
        with tempfile.TemporaryDirectory() as unwrapped:
            converted = convert_checkpoint(folder, str(folder), Path(unwrapped, "converted"))
            return load_sampler(
                converted,
                settings,
                mask_token=mask_token,
                shift=shift,
                block_size=block_size,
                device=device,
                dtype=dtype,
            )

    record = MaskedTokenRecord.find([folder])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_language_model(folder, record, dtype)
    family = find_family(model.config)
    if record is None and (mask_token is None or shift is None):
        family = family_of(model.config)  # a sentence, if nobody knows it
    if mask_token is None and record is not None:
        mask = MaskToken(record.mask_token, record.mask_token_id)
    else:
        mask = find_mask_token(tokenizer, mask_token, None if family is None else family.mask_token)
    if shift is None:
        shift = record.shift if record is not None else family is None or family.shift
    embedding = load_mask_embedding([folder])
    if embedding is not None:
        learn_mask_embedding(model, mask, embedding).requires_grad_(False)
    elif mask.is_added or mask.id >= model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"{name} has no embedding for its mask token {mask.text!r}: it was not trained as a diffusion language "
            "model with that token; name the token that it was trained with."
        )

    eos = tokenizer.eos_token_id
    settings = settings or SamplingSettings(
        algorithm=family.sampler if family is not None else SamplingSettings.algorithm
    )
    if block_size is None:
        block_size = settings.block_size
    if block_size is None and record is not None:
        block_size = record.block_size
    return Sampler(
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        tokenizer,
        dataclasses.replace(settings, block_size=block_size or None),
        mask.id,
        shift,
        () if eos is None else (eos,),
        "keep" if record is None else record.sliding_window,
    )


def check_is_complete(folder: Path) -> None:
    """Weights in DiffuLLaMA's layout may lie alone: its own programs take the rest from the base model."""
    absent = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} holds weights in DiffuLLaMA's layout without {' and '.join(absent)}: copy these of the model "
            "that was adapted beside the weights, or name both in a recipe (`model_name_or_path`, `checkpoint_dir`)."
        )


def load_language_model(
    name: str | Path, record: MaskedTokenRecord | None, dtype: torch.dtype | str = "auto"
) -> PreTrainedModel:
    """The model with its adapters merged, in their order."""
    if not (Path(name) / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    base = record.base_model if record is not None else None
    base = base or PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise ValueError(f"The adapter in {name} does not name its base model: set it in its adapter_config.json.")
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    except OSError as error:
        raise ValueError(f"The adapter in {name} belongs to {base}, which cannot be loaded: {error}") from error
    for adapter in [*(record.merged_adapters if record is not None else ()), str(name)]:
        folder = fetch(adapter)
        make_room(model, folder)
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model


def make_room(model: PreTrainedModel, adapter: Path) -> None:
    """An adapter that was trained with `resize_vocab: true` brings an embedding matrix of its own, with more rows than
    the base model's."""
    file = adapter / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    with safe_open(file, framework="pt") as opened:
        names = opened.keys()  # the file itself is no mapping
        saved = [each for each in names if each.endswith(f".{name}.weight")]
        rows = max((opened.get_slice(each).get_shape()[0] for each in saved), default=0)
    if rows > embedding.weight.shape[0]:
        model.resize_token_embeddings(rows)
