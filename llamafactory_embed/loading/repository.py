"""A folder or a repository of the hub, by name and revision: its small files first, its weights when needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..foreign import read_json_object
from .attention_pool import ATTENTION_POOL_NAME
from .weights import ADAPTER_CONFIG_NAME


MODEL_CONFIG_NAME = "config.json"
MODULES = "[0-9]*_*"  # the folders of sentence-transformers' modules
SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
WEIGHTS = ("*.safetensors",)
OLD_WEIGHTS = ("*.bin",)  # where there are no others


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """`name@revision` → both; a folder has no revision."""
    text = str(name)
    plain, at, revision = text.rpartition("@")
    if not at or os.path.exists(text):
        return text, None
    if not revision or os.path.isdir(plain):
        reason = "a folder has no revisions" if revision else "nothing stands behind the @"
        raise ValueError(f"`{text}`: {reason}; write `organization/model@revision`, or the folder alone.")
    return plain, revision


@dataclass(frozen=True)
class Repository:
    """Where a model or an adapter lies. `folder` holds its small files."""

    name: str
    folder: Path
    revision: str | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    """How the hub is asked (`token`, `cache_dir`)."""

    @classmethod
    def open(cls, name: str | Path, **hub: Any) -> Repository:
        """A folder, or what the hub has under `name` or `name@revision`, without its weights."""
        plain, revision = split_revision(name)
        if os.path.isdir(plain):
            return cls(plain, Path(plain))
        if os.path.exists(plain):
            raise ValueError(f"{plain} is a file: name the folder of a checkpoint.")
        # The pooler of Pooling-and-Attention tells by its shapes what it is; no other repository has the file.
        patterns = [*SMALL, *(f"{MODULES}/{each}" for each in SMALL), ATTENTION_POOL_NAME]
        return cls(plain, download(plain, revision, patterns, hub), revision, hub)

    @property
    def is_local(self) -> bool:
        """Whether it was named by its folder."""
        return os.path.isdir(self.name)

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter of PEFT."""
        return self.has(ADAPTER_CONFIG_NAME)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies there."""
        return any(map(self.has, TOKENIZER_FILES))

    def has(self, file_name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / file_name).is_file()

    def read_json(self, file_name: str) -> dict[str, Any]:
        """The content of a JSON file; empty if there is none."""
        return read_json_object(self.folder / file_name) if self.has(file_name) else {}

    def read_name(self, file_name: str, key: str) -> str | None:
        """A text in a JSON file; None if there is none."""
        name = self.read_json(file_name).get(key)
        if not isinstance(name, str | None):
            raise ValueError(f"{self.folder / file_name}: `{key}` must be text, not {name!r}.")
        return name or None

    def with_weights(self) -> Path:
        """The folder with everything in it."""
        if self.is_local:
            return self.folder
        small = [*SMALL, *(f"{MODULES}/{each}" for each in SMALL)]
        safe = [*WEIGHTS, *(f"{MODULES}/{each}" for each in WEIGHTS)]
        folder = download(self.name, self.revision, [*small, *safe, ATTENTION_POOL_NAME], self.hub)
        if not any(folder.glob("*.safetensors")):
            old = [*OLD_WEIGHTS, *(f"{MODULES}/{each}" for each in OLD_WEIGHTS)]
            folder = download(self.name, self.revision, [*small, *old, ATTENTION_POOL_NAME], self.hub)
        return folder


def download(name: str, revision: str | None, patterns: list[str], hub: Mapping[str, Any]) -> Path:
    """The folder in the cache with the files of these patterns; those of other subfolders (`onnx/`, `original/`) stay
    away."""
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=["[a-z]*/*", "[A-Z]*/*"], **hub
            )
        )
    except (OSError, ValueError) as error:  # no such repository, no connection, no valid name
        at = "" if revision is None else f" at `{revision}`"
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} is no folder, and the hub does not give it{at}: {reason}") from error
