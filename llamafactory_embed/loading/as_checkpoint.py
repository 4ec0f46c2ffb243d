"""Any source as a checkpoint of ours on the disk, for programs that read one: links to its weights, our settings."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from ..model.embedding_config import EmbeddingConfig
from .attention_pool import ATTENTION_POOL_NAME, read_attention_pool
from .checkpoint import POOLER_NAME
from .headers import check_weights, files_of
from .repository import MODEL_CONFIG_NAME
from .sentence_transformers_folder import read_dense_weights
from .served import load_tokenizer_of, plain_layout
from .source import Source
from .weights import ADAPTER_CONFIG_NAME


INDEX_NAMES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)


@contextlib.contextmanager
def as_checkpoint(source: Source) -> Iterator[Path]:
    """The folder of a checkpoint of ours as it is; another source, or one that is read with other settings than its
    own, as a temporary folder in our layout."""
    if is_plain_checkpoint(source):
        yield source.own.with_weights()
        return
    with tempfile.TemporaryDirectory() as temporary, plain_layout(source.model.with_weights()) as model:
        folder = Path(temporary, "checkpoint")
        folder.mkdir()
        top = source.adapters[-1].with_weights() if source.adapters else model
        check_weights(top)
        name = ADAPTER_CONFIG_NAME if source.adapters else MODEL_CONFIG_NAME
        for file in [top / name, *files_of(top), *(top / each for each in INDEX_NAMES)]:
            if file.is_file():
                os.symlink(file.resolve(), folder / file.name)
        _write_pooling(source, model, folder)
        load_tokenizer_of(source).save_pretrained(folder)
        _own_config(source, model).save(folder)
        yield folder


def is_plain_checkpoint(source: Source) -> bool:
    """Whether a program that reads a checkpoint of ours would read this one in the same way."""
    on_top = source.own is source.chain[-1]
    return source.kind == "checkpoint" and on_top and source.config == EmbeddingConfig.load(source.own.folder)


def _own_config(source: Source, model: Path) -> EmbeddingConfig:
    """The source's configuration. Parts of the hub are named by their names there, which others can read."""
    if not source.adapters:
        return dataclasses.replace(source.config, base_model=None, merged_adapters=[])
    below = [each.name if each.revision is None else str(each.with_weights()) for each in source.adapters[:-1]]
    is_named = source.model.revision is None and model == source.model.with_weights()
    base = source.model.name if is_named else str(model)
    return dataclasses.replace(
        source.config,
        base_model=os.path.abspath(base) if os.path.isdir(base) else base,
        merged_adapters=[os.path.abspath(each) if os.path.isdir(each) else each for each in below],
    )


def _write_pooling(source: Source, model: Path, folder: Path) -> None:
    """The weights above the language model, in our file."""
    own = source.own.with_weights()
    if source.kind == "pooling-and-attention":
        layers = source.model.read_json(MODEL_CONFIG_NAME)["num_hidden_layers"]
        save_file(read_attention_pool(own / ATTENTION_POOL_NAME, layers), folder / POOLER_NAME)
    elif source.kind == "sentence-transformers" and source.config.dense:
        dense = read_dense_weights(own)
        save_file({f"dense.{name}": each.contiguous() for name, each in dense.items()}, folder / POOLER_NAME)
    elif (own / POOLER_NAME).is_file():
        shutil.copy(own / POOLER_NAME, folder)
