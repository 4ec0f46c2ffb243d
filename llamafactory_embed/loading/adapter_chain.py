"""The model at the bottom of a checkpoint and the adapters on it, found by what each of them names.

The authors of LLM2Vec merge one adapter before they train the next, and the configuration of the next names the model
at the bottom only: their repositories' names say what lies between.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..model.embedding_config import CONFIG_NAME, EmbeddingConfig
from ..model.mask_token import RECORD_NAME, MaskedTokenRecord
from ..model.records import CheckpointRecord
from .llm2vec_settings import adapter_below
from .repository import Repository
from .weights import ADAPTER_CONFIG_NAME


def find_chain(
    name: str | Path, adapters: Iterable[str] | None, base_model: str | None, hub: Mapping[str, Any]
) -> list[Repository]:
    """The model at the bottom, then the adapters in the order in which they are merged."""
    start = Repository.open(name, **hub)
    if base_model is not None and not start.is_adapter:
        raise ValueError(f"`base_model` is the model below an adapter, and {name} is a model of one piece.")
    chain = expand(start, base_model, hub)
    for adapter in adapters or ():
        each = Repository.open(adapter, **hub)
        if not each.is_adapter:
            raise ValueError(f"`adapters`: {adapter} holds no {ADAPTER_CONFIG_NAME}: name an adapter of PEFT.")
        chain.append(each)
    return list({each.folder.resolve(): each for each in chain}.values())


def expand(repository: Repository, base_model: str | None, hub: Mapping[str, Any]) -> list[Repository]:
    """What lies below an adapter, as its files or its authors say, and the adapter."""
    if not repository.is_adapter:
        return [repository]
    base, merged = named_below(repository)
    is_ours = repository.has(CONFIG_NAME) or repository.has(RECORD_NAME)
    sibling = None if is_ours else adapter_below(repository.name)
    if sibling is not None:
        if repository.is_local and not os.path.isdir(sibling):
            raise ValueError(
                f"{repository.name} was trained on top of {Path(sibling).name}, which does not lie beside it: name "
                "that adapter as the checkpoint, and this one in `adapters`."
            )
        return [*expand(Repository.open(sibling, **hub), base_model, hub), repository]
    below = base_model or base
    if below is None:
        raise ValueError(
            f"The adapter in {repository.name} does not name its base model: name it in `base_model`, or in "
            f"`base_model_name_or_path` of its {ADAPTER_CONFIG_NAME}."
        )
    try:
        found = expand(Repository.open(below, **hub), None, hub)
    except ValueError as error:
        raise ValueError(
            f"The adapter in {repository.name} belongs to {below}, which cannot be loaded (another place can be named "
            f"in `base_model`): {error}"
        ) from error
    return [*found, *(Repository.open(each, **hub) for each in merged), repository]


def named_below(adapter: Repository) -> tuple[str | None, list[str]]:
    """The model that an adapter names, and the adapters that were merged into it before."""
    named = adapter.read_name(ADAPTER_CONFIG_NAME, "base_model_name_or_path")
    records: tuple[tuple[str, type[CheckpointRecord]], ...] = (
        (CONFIG_NAME, EmbeddingConfig),
        (RECORD_NAME, MaskedTokenRecord),
    )
    for file_name, kind in records:
        if adapter.has(file_name):
            record: Any = kind.load(adapter.folder)
            return record.base_model or named, list(record.merged_adapters)
    return named, []
