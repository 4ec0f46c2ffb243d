"""The weights of a checkpoint as plain ones: adapters merged in float32, rounded once, saved without a head."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

from ..files import write_json
from ..foreign import read_yaml
from ..loading.checkpoint import POOLER_NAME, load_embedding_model
from ..loading.weights import ADAPTER_CONFIG_NAME, ADAPTER_NAME, text_part
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from ..model.families import find_family
from .options import Dtype


RECIPE_NAME = "recipe.yaml"  # the host's options, which every checkpoint keeps

# `use_bidirectional_attention: true` is how text-embeddings-inference asks these; transformers itself reads
# `is_causal`. Gemma's configurations have a flag of that name with another meaning.
ASKED_BY_TEI = ("llama", "mistral", "qwen3")

# Rotary settings that stood beside `rope_scaling`, not in it, before transformers 5.
ROPE_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor")
PHI3_FACTORS = ("short_factor", "long_factor")


def load_merged(checkpoint: str | Path, device: str = "cpu", dequantize: bool = False) -> EmbeddingModel:
    """A checkpoint in float32, its adapters merged.

    `dequantize` merges a QLoRA adapter into the base model's weights as quantization has rounded them, which is what
    it was trained on, instead of into the original ones, which is what `Encoder` serves. Weights that the base model
    has only in quantized form are dequantized anyway.
    """
    config = EmbeddingConfig.load(checkpoint)
    if not (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file():
        if dequantize:
            raise ValueError("`--dequantize` is for checkpoints of QLoRA, and this one holds no adapter.")
        model = load_embedding_model(checkpoint, device=device, dtype=torch.float32)
        return _with_head(model, checkpoint) if is_diffusion(model.config) else model

    quantization = read_quantization(checkpoint) if dequantize else None
    if quantization is None and "quantization_config" not in read_model_config(checkpoint, config).to_dict():
        return load_embedding_model(checkpoint, device=device, dtype=torch.float32)
    with _over_dequantized_base(checkpoint, config, quantization) as prepared:
        return load_embedding_model(prepared, device=device, dtype=torch.float32)


def is_diffusion(config: PretrainedConfig) -> bool:
    """Whether a model is of a family of diffusion language models (Dream, LLaDA)."""
    family = find_family(config)
    return family is not None and family.is_diffusion


def _with_head(model: EmbeddingModel, checkpoint: str | Path) -> EmbeddingModel:
    """The same model over all of the checkpoint's weights: `Encoder` leaves the head on the disk."""
    whole = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(model.device)
    again = EmbeddingModel(whole, model.embedding_config)
    again.load_pooling_weights(model.pooling_weights())
    return again.requires_grad_(False).eval().to(model.device)


def find_base(checkpoint: str | Path, config: EmbeddingConfig) -> str:
    """The base model of a checkpoint's adapter."""
    base = config.base_model or PeftConfig.from_pretrained(checkpoint).base_model_name_or_path
    if not base:
        raise ValueError(
            f"The adapter in {checkpoint} does not name its base model: set `base_model` in its embedding_config.json."
        )
    return base


def read_quantization(checkpoint: str | Path) -> BitsAndBytesConfig:
    """How the base model was quantized while the adapter was trained, from the recipe that the checkpoint keeps."""
    path = Path(checkpoint) / RECIPE_NAME
    recipe: dict[str, Any] = (read_yaml(path) or {}) if path.is_file() else {}
    bits, method = recipe.get("quantization_bit"), recipe.get("quantization_method", "bnb")
    if bits not in (4, 8) or method not in ("bnb", "bitsandbytes"):
        raise ValueError(
            f"`--dequantize` is for checkpoints of QLoRA, and {path} has no `quantization_bit: 4` or `8` of bnb."
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=recipe.get("double_quantization", True),  # the host's own defaults
        bnb_4bit_quant_type=recipe.get("quantization_type", "nf4"),
    )


def require_cuda() -> None:
    """What bitsandbytes runs on."""
    if not torch.cuda.is_available():
        raise ValueError("Dequantizing needs a CUDA device and bitsandbytes: export on a machine that has both.")


@contextmanager
def _over_dequantized_base(
    checkpoint: str | Path, config: EmbeddingConfig, quantization: BitsAndBytesConfig | None
) -> Iterator[Path]:
    """The same checkpoint in a temporary folder, over weights that were quantized and dequantized."""
    base = find_base(checkpoint, config)
    options: dict[str, Any] = {"device_map": "auto", "dtype": torch.bfloat16}
    method = (
        read_model_config(checkpoint, config)
        .to_dict()
        .get("quantization_config", {})
        .get("quant_method", "bitsandbytes")
    )
    if method != "bitsandbytes":
        raise ValueError(
            f"The base model {base} has only weights quantized by {method}, which cannot be dequantized: name one "
            "with its original weights as `base_model` in the checkpoint's embedding_config.json."
        )
    require_cuda()
    if quantization is not None:
        options["quantization_config"] = quantization
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(base, **options).dequantize()
        model.save_pretrained(Path(folder, "base"))
        del model
        prepared = Path(folder, "checkpoint")
        prepared.mkdir()
        for name in (ADAPTER_CONFIG_NAME, ADAPTER_NAME, POOLER_NAME):
            if (Path(checkpoint) / name).is_file():
                shutil.copy(Path(checkpoint) / name, prepared)
        replace(config, base_model=str(Path(folder, "base"))).save(prepared)
        yield prepared


def read_model_config(checkpoint: str | Path, config: EmbeddingConfig) -> PretrainedConfig:
    """The configuration of the checkpoint's language model, without loading the model."""
    is_adapter = (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file()
    source = find_base(checkpoint, config) if is_adapter else str(checkpoint)
    try:
        return text_part(AutoConfig.from_pretrained(source))
    except OSError as error:
        role = "The base model" if is_adapter else "The model"
        cause = str(error).partition("\n")[0]
        raise ValueError(f"{role} {source} of the checkpoint {checkpoint} cannot be loaded: {cause}") from error


def find_dtype(saved: PretrainedConfig, asked: Dtype) -> torch.dtype:
    """The type to save: the one asked for, or that of the base model (of the checkpoint, if it has all weights)."""
    if asked == "int8":
        raise ValueError("`--dtype int8` is for `--layout openvino`: weights in other layouts are floats.")
    return (saved.dtype or torch.float32) if asked == "auto" else getattr(torch, asked)


def round_weights(model: EmbeddingModel, dtype: torch.dtype) -> None:
    """Give the language model's weights the values that they will have in the files. Buffers stay: transformers
    computes them anew in float32. The pooler stays too: it is saved in float32."""
    for parameter in model.decoder.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def save_weights(model: EmbeddingModel, folder: Path, dtype: torch.dtype, max_shard_size: str, **more: Any) -> None:
    """Write the decoder and its configuration: a plain `*Model` for transformers, attention as it was trained.
    `more` goes into config.json."""
    # Dream and LLaDA keep the layout of their authors, whose code knows no model without its head.
    saved: Any = model.backbone if is_diffusion(model.config) else model.decoder
    weights = {name: each.to(dtype) if each.is_floating_point() else each for name, each in saved.state_dict().items()}
    saved.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    dtype_key = "torch_dtype" if "torch_dtype" in settings else "dtype"  # Dream's and LLaDA's code knows the former
    settings |= {dtype_key: str(dtype).removeprefix("torch."), **rope_as_before(settings), **more}
    if not model.embedding_config.causal and settings["model_type"] in ASKED_BY_TEI:
        settings["use_bidirectional_attention"] = True
    write_json(path, settings)


def rope_as_before(settings: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings under the names that they had before transformers 5. text-embeddings-inference and older
    releases of transformers know no others, and fall back on a wrong base or do not load."""
    rope = settings.get("rope_parameters")
    if not rope:
        return {}
    if "full_attention" in rope:  # Gemma 3 and others with two kinds of layers
        local = rope.get("sliding_attention", {}).get("rope_theta")
        return rope_as_before(settings | {"rope_parameters": rope["full_attention"]}) | (
            {} if local is None else {"rope_local_base_freq": local}
        )
    entries = {name: rope[name] for name in ROPE_BESIDE_SCALING if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in ROPE_BESIDE_SCALING}
    if scaling.get("rope_type", "default") == "default":
        return entries
    if settings.get("model_type") == "phi3":  # its older code refuses all but these three fields
        scaling = {"type": scaling["rope_type"]} | {name: scaling[name] for name in PHI3_FACTORS if name in scaling}
        if "original_max_position_embeddings" in rope:
            entries["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return entries | {"rope_scaling": scaling}
