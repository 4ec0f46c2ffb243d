"""The folder: sentence-transformers' classic layout, which its own releases, text-embeddings-inference and vLLM read.

The types in modules.json are the classic names `sentence_transformers.models.*`: the newer ones are unknown to the
servers. `Encoder` reads the folder too.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..files import write_json
from ..loading.checkpoint import POOLER_NAME
from ..model.dense import ACTIVATIONS, DenseLayer
from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from ..model.latent_pooling import LatentPooler, MultiLayerLatentPooler
from .card import portable_base
from .multi_vector import write_token_modules
from .serving import POOLING_MODES, Serving
from .tokenizer_files import save_tokenizer
from .weights import save_weights


CODE = Path(__file__).parent / "shipped" / "embedder_modules.py"
CLASSIC = "sentence_transformers.models."
ALL_MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write_layout(
    model: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    serving: Serving,
    dtype: torch.dtype,
    max_shard_size: str,
) -> None:
    """Write everything but the card into an empty folder."""
    config = model.embedding_config
    save_weights(model, folder, dtype, max_shard_size, **_config_entries(model))
    save_tokenizer(tokenizer, folder, config.append_eos, serving.max_length)
    write_pooler(model, folder)
    dataclasses.replace(config, merged_adapters=[], base_model=portable_base(config)).save(folder)

    lengths: dict[str, Any] = {"max_seq_length": serving.max_length, "do_lower_case": False}
    if serving.query_length != serving.document_length:
        lengths |= {"query_length": serving.query_length, "document_length": serving.document_length}
    write_json(folder / "sentence_bert_config.json", lengths)
    write_json(folder / "config_sentence_transformers.json", _model_settings(config, serving))
    write_json(folder / "modules.json", list(_write_modules(model, folder, serving)))


def write_pooler(model: EmbeddingModel, folder: Path) -> None:
    """The weights of a latent pooling, where `Encoder` and the shipped module look for them, and those of the layers
    behind it, which only `Encoder` reads there."""
    weights = model.pooling_weights()
    if weights:
        save_file({name: each.contiguous().cpu() for name, each in weights.items()}, folder / POOLER_NAME)


def _config_entries(model: EmbeddingModel) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if model.embedding_config.matryoshka_dims:
        entries["matryoshka_dimensions"] = sorted(model.embedding_config.matryoshka_dims)  # vLLM: `dimensions`
    if model.pooler.uses_all_layers:
        entries["output_hidden_states"] = True
    return entries


def _model_settings(config: EmbeddingConfig, serving: Serving) -> dict[str, Any]:
    requirements = {}
    if not config.causal:
        reason = "Older releases ignore `is_causal: false` and embed with causal attention, without a warning."
        requirements["transformers"] = {"specifier": ">=5.2", "reason": reason}
    if serving.needs_code:
        reason = "Older releases do not tell the pooling where the prompt ends."
        requirements["sentence-transformers"] = {"specifier": ">=6", "reason": reason}
    if config.multi_vector:
        reason = "Older releases have no MultiVectorEncoder."
        requirements["sentence-transformers"] = {"specifier": ">=6", "reason": reason}
    packages = {"sentence_transformers": "sentence-transformers", "transformers": "transformers", "pytorch": "torch"}
    return {
        "model_type": "MultiVectorEncoder" if config.multi_vector else "SentenceTransformer",
        "__version__": {name: importlib.metadata.version(package) for name, package in packages.items()},
        "prompts": serving.prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "meanmaxsim" if config.multi_vector else config.similarity,
        "requirements": requirements,
    }


def _write_modules(model: EmbeddingModel, folder: Path, serving: Serving) -> Sequence[dict[str, Any]]:
    """Write the folders of the modules after the language model; return the content of modules.json."""
    config, size = model.embedding_config, model.config.hidden_size
    dense = list(_dense_modules(model, serving.dimensions))
    if config.multi_vector:
        return write_token_modules(folder, dense)
    if serving.needs_code:
        shutil.copy(CODE, folder)
        types = {"": f"{CODE.stem}.TextTransformer", "1_TextPooling": f"{CODE.stem}.TextPooling"}
        pooling: dict[str, Any] = {
            "embedding_dimension": size,
            "pooling": config.pooling,
            "skip_instruction": config.skip_instruction,
            **_latent_sizes(model),
        }
    else:
        types = {"": f"{CLASSIC}Transformer", "1_Pooling": f"{CLASSIC}Pooling"}
        chosen = POOLING_MODES[config.pooling]
        modes = {f"pooling_mode_{mode}": mode == chosen for mode in ALL_MODES}
        pooling = {"word_embedding_dimension": size, **modes, "include_prompt": True}
    (folder / list(types)[1]).mkdir()
    write_json(folder / list(types)[1] / "config.json", pooling)

    for settings, weights in dense:
        path = f"{len(types)}_Dense"
        types[path] = f"{CLASSIC}Dense"
        (folder / path).mkdir()
        write_json(folder / path / "config.json", settings)
        save_file(weights, folder / path / "model.safetensors")
    if config.normalize:
        types[f"{len(types)}_Normalize"] = f"{CLASSIC}Normalize"
    return [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(types.items())
    ]


def _latent_sizes(model: EmbeddingModel) -> dict[str, Any]:
    pooler = model.pooler
    if not isinstance(pooler, LatentPooler):
        return {}
    return {
        "keys": pooler.keys,
        "latents": pooler.latents.shape[0],
        "heads": pooler.heads,
        "head_size": pooler.to_query.out_features // pooler.heads,
        "feedforward_size": pooler.feedforward_out.in_features,
        "num_layers": len(pooler.layer_embeddings) if isinstance(pooler, MultiLayerLatentPooler) else 0,
    }


def _dense_modules(
    model: EmbeddingModel, dimensions: int | None
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Settings and weights of the layers behind the pooling, then of one that keeps the first `dimensions`.

    It stands before the normalization: every server knows such a module, and cutting after it (`truncate_dim`) would
    leave vectors that are not of unit length.
    """
    for linear, layer in zip(model.dense.layers, model.embedding_config.dense, strict=True):
        weights = {f"linear.{name}": each.contiguous().cpu() for name, each in linear.state_dict().items()}
        yield _dense_settings(linear.in_features, layer), weights
    if dimensions is not None:
        settings = _dense_settings(model.dimension, DenseLayer(dimensions, bias=False))
        yield settings, {"linear.weight": torch.eye(dimensions, model.dimension)}


def _dense_settings(size: int, layer: DenseLayer) -> dict[str, Any]:
    activation = type(ACTIVATIONS[layer.activation]())
    return {
        "in_features": size,
        "out_features": layer.size,
        "bias": layer.bias,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
    }
