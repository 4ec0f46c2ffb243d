"""A folder with a diffusion language model → a `Sampler`: full weights or an adapter, trained here or published."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..model.families import family_of, find_family
from ..model.mask_token import (
    EMBEDDING_NAME,
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
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "auto",
) -> Sampler:
    """Load a checkpoint by its folder or hub name. Mask token and shift are what it was trained with, if it says so
    (`masked_tokens.json`), else those of its family; `mask_token` and `shift` say otherwise."""
    record = MaskedTokenRecord.find([name])
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = load_language_model(name, record, dtype)
    family = find_family(model.config)
    if record is None and (mask_token is None or shift is None):
        family = family_of(model.config)  # a sentence, if nobody knows it
    if mask_token is None and record is not None:
        mask = MaskToken(record.mask_token, record.mask_token_id)
    else:
        mask = find_mask_token(tokenizer, mask_token, None if family is None else family.mask_token)
    if shift is None:
        shift = record.shift if record is not None else family is None or family.shift
    if (Path(name) / EMBEDDING_NAME).is_file():
        learn_mask_embedding(model, mask, load_mask_embedding([name])).requires_grad_(False)
    elif mask.id >= model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"{name} has no embedding for its mask token {mask.text!r}: it was not trained as a diffusion language "
            "model with that token; name the token that it was trained with."
        )

    eos = tokenizer.eos_token_id
    return Sampler(
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        tokenizer,
        settings or SamplingSettings(algorithm=family.sampler if family is not None else SamplingSettings.algorithm),
        mask.id,
        shift,
        () if eos is None else (eos,),
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
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model
