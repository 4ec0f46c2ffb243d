"""What a result is filed under: names, and digests that change with whatever the result depends on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..loading.attention_pool import ATTENTION_POOL_NAME
from ..loading.llm2vec_adapters import LLM2VEC_SETTINGS
from ..loading.repository import Repository
from ..loading.sentence_transformers_folder import MODEL_SETTINGS
from ..loading.source import Source
from ..loading.weights import ADAPTER_CONFIG_NAME
from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig


SENTENCE_TRANSFORMERS = "modules.json"
# Files that decide the embeddings of a checkpoint; logs, optimizer states and cards do not.
CONFIGS = (CONFIG_NAME, "config.json", ADAPTER_CONFIG_NAME, SENTENCE_TRANSFORMERS, "*_Pooling/config.json")
DECISIVE_FILES = (*CONFIGS, "*.safetensors", "tokenizer*", "vocab*", "merges.txt")
OF_OTHERS = (LLM2VEC_SETTINGS, ATTENTION_POOL_NAME, "*.bin")
OF_SENTENCE_TRANSFORMERS = (MODEL_SETTINGS, "sentence_*_config.json", "*_Dense/*", "*.bin")  # prompts, lengths, layers

BLOCK = 1 << 22  # bytes


def name_of_folder(path: Path) -> str:
    """`organization/model` from the last two parts of a path, which also tell a run's checkpoints apart."""
    path = path.resolve()
    return f"{path.parent.name or 'local'}/{path.name}"


def revision_of_checkpoint(path: Path) -> str:
    """A digest of what decides the embeddings: the checkpoint, and the local folders it is built on."""
    return _digest_files(_decisive_files([path, *_folders_below(path)], DECISIVE_FILES))


def revision_of_folder(repository: Repository) -> str:
    """The same of a folder of sentence-transformers: of its files, or of its commit on the hub."""
    if not repository.is_local:
        return _digest_files([], f"{repository.name}@{repository.folder.name}")
    return _digest_files(_decisive_files([repository.folder], (*DECISIVE_FILES, *OF_SENTENCE_TRANSFORMERS)))


def revision_of_source(source: Source) -> str:
    """The same of any source: a digest of its folders, and of the commits of those parts that lie on the hub."""
    if source.kind == "checkpoint" and source.own is source.chain[-1] and source.own.is_local:
        return revision_of_checkpoint(source.own.folder)
    parts = source.chain[::-1]
    remote = " ".join(f"{each.name}@{each.folder.name}" for each in parts if not each.is_local)
    local = [each.folder for each in parts if each.is_local]
    return _digest_files(_decisive_files(local, (*DECISIVE_FILES, *OF_OTHERS)), remote)


def name_of_source(source: Source) -> str:
    """`organization/model`: a name on the hub as it is."""
    top = source.chain[-1]
    return name_of_folder(top.folder) if top.is_local else top.name


def _decisive_files(folders: Iterable[Path], patterns: Iterable[str]) -> list[tuple[str, Path]]:
    files = []
    for folder in folders:
        here = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
        files += [(file.name, file) for file in sorted(here)]
    return files


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
