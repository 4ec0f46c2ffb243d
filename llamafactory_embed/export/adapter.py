"""A checkpoint's adapter alone: a few megabytes for whoever has the base model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..encoder.encoder import Encoder
from ..loading.checkpoint import POOLER_NAME
from ..loading.llm2vec_adapters import AdapterFiles
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import EmbeddingConfig
from .card import CARD_NAME, front_matter, make_header, metrics_section, portable_base, write_text
from .folder import new_folder
from .verify import check_same
from .weights import find_base, write_json


def export_adapter(
    checkpoint: str | Path, target: str | Path, *, overwrite: bool = False, device: str = "cpu"
) -> list[str]:
    """Adapter, pooler, tokenizer and configuration, without what only training needs; remarks about the base model."""
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
        write_text(folder / CARD_NAME, adapter_card(Path(target).name, checkpoint, config, base))
        check_same(
            Encoder(checkpoint, device=device, dtype=torch.float32),
            Encoder(folder, device=device, dtype=torch.float32),
            "Encoder",
        )
    return describe_base(config, base)


def check_stands_alone(checkpoint: str | Path, config: EmbeddingConfig) -> None:
    """An adapter can travel if all that it lies upon has a name that others know."""
    if not (Path(checkpoint) / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"{checkpoint} holds all weights and no adapter: export it without `--layout adapter`.")
    folders = [each for each in config.merged_adapters if os.path.isdir(each)]
    if folders:
        raise ValueError(
            f"The adapter in {checkpoint} lies upon {', '.join(folders)}, which others do not have: export merged "
            "weights, without `--layout adapter`."
        )


def describe_base(config: EmbeddingConfig, base: str) -> list[str]:
    """What the receiver has to have."""
    remarks = []
    if portable_base(config) is None:
        remarks.append(
            f"The base model is named by a folder of this machine, {base}: whoever loads the adapter elsewhere writes "
            "the right name into `base_model` of embedding_config.json and `base_model_name_or_path` of "
            "adapter_config.json."
        )
    if config.merged_adapters:
        remarks.append(f"It lies upon {', '.join(config.merged_adapters)}, which `Encoder` merges first.")
    return remarks


def adapter_card(name: str, checkpoint: str | Path, config: EmbeddingConfig, base: str) -> list[str]:
    """The lines of the model card."""
    return [
        *front_matter(make_header(config, "peft")),
        f"# {name}",
        "",
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
        *metrics_section(checkpoint),
    ]
