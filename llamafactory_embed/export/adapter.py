"""A checkpoint's adapter alone: a few megabytes for those who have the base model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..encoder.encoder import Encoder
from ..files import write_json
from ..loading.checkpoint import POOLER_NAME
from ..loading.llm2vec_adapters import AdapterFiles
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import EmbeddingConfig
from .card import portable_base, write_card_page
from .folder import copy_ranges, new_folder
from .verify import check_same
from .weights import find_base


def export_adapter(
    checkpoint: str | Path, target: str | Path, *, overwrite: bool = False, device: str = "cpu"
) -> list[str]:
    """Adapter, pooler, tokenizer and configuration, without what only training needs. Returns remarks about the base
    model."""
    config = EmbeddingConfig.load(checkpoint)
    check_stands_alone(checkpoint, config)
    base = find_base(checkpoint, config)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with new_folder(target, checkpoint, overwrite) as folder:
        files = AdapterFiles.find(checkpoint)
        write_json(folder / ADAPTER_CONFIG_NAME, files.read_config() | {"base_model_name_or_path": base})
        shutil.copy(files.weights, folder)
        if (Path(checkpoint) / POOLER_NAME).is_file():
            shutil.copy(Path(checkpoint) / POOLER_NAME, folder)
        tokenizer.save_pretrained(folder)
        dataclasses.replace(config, base_model=base).save(folder)
        copy_ranges(checkpoint, folder)
        name = Path(target).name
        write_card_page(folder, name, checkpoint, config, "peft", "adapter", describe_adapter(name, config, base))
        check_same(
            Encoder(checkpoint, device=device, dtype=torch.float32),
            Encoder(folder, device=device, dtype=torch.float32),
            "Encoder",
        )
    return describe_base(config, base)


def check_stands_alone(checkpoint: str | Path, config: EmbeddingConfig) -> None:
    """Refuse an adapter on top of something that others do not have."""
    if not (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"{checkpoint} holds all weights and no adapter: export it without `--layout adapter`.")
    folders = [each for each in config.merged_adapters if os.path.isdir(each)]
    if folders:
        raise ValueError(
            f"The adapter in {checkpoint} was trained on top of {', '.join(folders)}, which others do not have: "
            "export merged weights, without `--layout adapter`."
        )


def describe_base(config: EmbeddingConfig, base: str) -> list[str]:
    """What the receiver needs."""
    remarks = []
    if portable_base(config) is None:
        remarks.append(
            f"The base model is named by a folder of this machine, {base}: to load the adapter elsewhere, write the "
            "right name into `base_model` of embedding_config.json and `base_model_name_or_path` of "
            "adapter_config.json."
        )
    if config.merged_adapters:
        remarks.append(f"It was trained on top of {', '.join(config.merged_adapters)}, which `Encoder` merges first.")
    return remarks


def describe_adapter(name: str, config: EmbeddingConfig, base: str) -> list[str]:
    """The lines of the model card."""
    return [
        f"An adapter that makes `{portable_base(config) or Path(base).name}` a text embedder, trained with "
        "llamafactory-embed, a plugin of LLaMA-Factory.",
        "",
        "```python",
        "from llamafactory_embed import Encoder",
        "",
        f'encoder = Encoder("{name}")',
        'documents = encoder.encode(["a document", "another one"])',
        "```",
        "",
        f"Attention {config.attention}, pooling {config.pooling}; `embedding_config.json` has the rest.",
        "",
    ]
