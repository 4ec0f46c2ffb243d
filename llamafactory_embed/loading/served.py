"""From a source to the model that serves it: adapters merged in their order, pooler and layers behind it on top."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attention_patch import Backend

from ..model.embedding import EmbeddingModel
from ..model.embedding_config import EmbeddingConfig
from .adapted_checkpoint import convert_checkpoint, is_wrapped
from .attention_pool import ATTENTION_POOL_NAME, read_attention_pool
from .checkpoint import check_is_complete, default_device, load_pooling
from .headers import check_weights
from .sentence_transformers_folder import load_dense_modules
from .source import Source, check_settings
from .weights import load_language_model


logger = logging.getLogger(__name__)

# Settings of a model in memory that can change without another model.
ABOUT_TEXTS = ("query_template", "document_template", "query_max_length", "document_max_length")


def load_source(
    source: Source,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> EmbeddingModel:
    """Load a source for inference. What is not ours is announced in one line."""
    if source.kind != "checkpoint":
        logger.warning("%s is taken as: %s.", source.name, source.description)
    model = EmbeddingModel(load_chain(source, dtype), source.config, backend=backend)
    load_pooling_of(source, model)
    return model.requires_grad_(False).eval().to(device or default_device())


def load_tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """The uppermost tokenizer of the chain."""
    try:
        return AutoTokenizer.from_pretrained(source.tokenizer_folder)
    except (OSError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"The tokenizer in {source.tokenizer_folder} cannot be loaded: {reason}") from error


def load_chain(source: Source, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The language model with its adapters, without a head where it has none of them."""
    with plain_layout(source.model.with_weights()) as model:
        adapters = [each.with_weights() for each in source.adapters]
        for folder in (model, *adapters):
            check_weights(folder)
        if not adapters:
            return load_language_model(model, dtype=dtype or "auto", with_head=False)
        below = [str(each) for each in adapters[:-1]]
        return load_language_model(adapters[-1], str(model), below, dtype=dtype or "auto")


@contextlib.contextmanager
def plain_layout(folder: Path) -> Iterator[Path]:
    """The folder as transformers loads it: one in DiffuLLaMA's layout is converted into a temporary one."""
    if not is_wrapped(folder):
        yield folder
        return
    check_is_complete(folder)
    with tempfile.TemporaryDirectory() as temporary:
        yield convert_checkpoint(folder, str(folder), Path(temporary, "converted"))


def load_pooling_of(source: Source, model: EmbeddingModel) -> None:
    """Put the weights above the language model into it."""
    if not model.pooling_weights():
        return
    folder = source.own.with_weights()
    if source.kind == "sentence-transformers":
        load_dense_modules(model, folder)
    elif source.kind == "pooling-and-attention":
        path = folder / ATTENTION_POOL_NAME
        state = read_attention_pool(path, model.config.num_hidden_layers)
        try:
            model.load_pooling_weights({name: each.float() for name, each in state.items()})
        except RuntimeError as error:
            raise ValueError(
                f"{path} belongs to a model with states of {state['latents'].shape[1]} numbers, and "
                f"{source.model.name} has {model.config.hidden_size}: name the model that it was trained on in "
                "`base_model`."
            ) from error
    else:
        load_pooling(model, folder)


def with_other_texts(config: EmbeddingConfig, overrides: Mapping[str, Any]) -> EmbeddingConfig:
    """The configuration of a model in memory, with other templates and lengths."""
    given = check_settings(overrides)
    for name in given:
        if name not in ABOUT_TEXTS:
            raise ValueError(
                f"`{name}` of a model in memory cannot change any more: set it when the model is made, or open a "
                f"checkpoint. ({', '.join(ABOUT_TEXTS)} can.)"
            )
    return dataclasses.replace(config, **given)
