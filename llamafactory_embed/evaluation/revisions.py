"""What a result is filed under: names, and digests that change with whatever the result depends on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig


SENTENCE_TRANSFORMERS = "modules.json"
# Files that decide the embeddings of a checkpoint; logs, optimizer states and cards do not.
CONFIGS = (CONFIG_NAME, "config.json", ADAPTER_CONFIG_NAME, SENTENCE_TRANSFORMERS, "*_Pooling/config.json")
DECISIVE_FILES = (*CONFIGS, "*.safetensors", "tokenizer*", "vocab*", "merges.txt")

BLOCK = 1 << 22  # bytes


def name_of_folder(path: Path) -> str:
    """`organization/model` from the last two parts of a path, which also tell a run's checkpoints apart."""
    path = path.resolve()
    return f"{path.parent.name or 'local'}/{path.name}"


def revision_of_checkpoint(path: Path) -> str:
    """A digest of what decides the embeddings: the checkpoint, and the local folders it is built on."""
    files = []
    for folder in [path, *_folders_below(path)]:
        here = {file for pattern in DECISIVE_FILES for file in folder.glob(pattern) if file.is_file()}
        files += [(file.name, file) for file in sorted(here)]
    return _digest_files(files)


def _folders_below(path: Path) -> list[Path]:
    """The base model of an adapter and the adapters merged into it, as far as they are folders."""
    if not (path / CONFIG_NAME).is_file() or not (path / ADAPTER_CONFIG_NAME).is_file():
        return []
    config = EmbeddingConfig.load(path)
    return [Path(each) for each in [config.base_model, *config.merged_adapters] if each and os.path.isdir(each)]


def name_of_data(path: Path) -> str:
    """A task's name from the path of its data: letters, digits, dots, dashes and underscores."""
    stem = path.resolve().name
    if path.is_file():
        stem = stem.removesuffix(".gz").rsplit(".", 1)[0]
    return re.sub(r"[^\w.-]+", "_", stem)


def revision_of_data(path: str, more: str = "") -> str:
    """A digest of a file, or of all files of a folder, and of `more` that the task depends on."""
    paths = [path] if os.path.isfile(path) else sorted(str(each) for each in Path(path).rglob("*") if each.is_file())
    return _digest_files([(os.path.relpath(each, path), Path(each)) for each in paths], more)


def _digest_files(files: Iterable[tuple[str, Path]], more: str = "") -> str:
    """Of names and contents, read in blocks: weights do not have to fit into memory."""
    state = hashlib.blake2b(more.encode(), digest_size=10)
    for name, path in files:
        state.update(name.encode())
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                state.update(block)
    return state.hexdigest()
