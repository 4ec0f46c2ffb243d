"""Entries of `dataset_info.json` with `"formatting": "retrieval"`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...hparams.objectives import check_objective
from ...hparams.suggestion import suggest
from ..problems import broken_character
from ..registry import HubOptions, check_entry_values, load_from_hub, registered_entries
from .formats import ID_ROLE_OF, ID_ROLES, ROLES


HOST_KEYS = (
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "formatting",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
)
RETRIEVAL_KEYS = (
    "task",
    "instruction",
    "symmetric",
    "own_passages_only",
    "corpus",
    "queries",
    "objective",
    "teacher_vectors",
)
SOURCE_KEYS = ("file_name", "hf_hub_url", "subset", "split", "folder", "columns")
SOURCE_COLUMNS = ("id", "text", "title")


@dataclass(frozen=True)
class TextSource:
    """Where the texts lie that rows name by id, and how to read them."""

    name: str
    """The data set's name and the key, `my_rows: corpus`, for messages."""
    location: str
    """A file or folder, or a name on the Hugging Face hub."""
    on_hub: bool = False
    subset: str | None = None
    split: str | None = None
    """On the hub: None for all splits."""
    folder: str | None = None
    hub_files: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """Where a data set lies and how to read it."""

    name: str
    location: str
    """A file or folder, or a name on the Hugging Face hub."""
    on_hub: bool = False
    task: str = ""
    instructions: tuple[str, ...] = ("",)
    """Several take turns, by the number of the row, as LLM2Vec does with the E5 data."""
    symmetric: bool = False
    own_passages_only: bool | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    subset: str | None = None
    split: str | None = None
    folder: str | None = None
    hub_files: str | None = None
    """On the hub: the file, or the pattern of files, of this data set."""
    num_samples: int | None = None
    corpus: TextSource | None = None
    """The texts of `positive_ids` and `negative_ids`."""
    queries: TextSource | None = None
    """The texts of `query_id`."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """What the task is trained for, where that is not what the recipe says (`hparams.objectives`)."""
    teacher_vectors: str | None = None
    """A `.npy` file with a teacher's vectors of every record."""
    first_rows: int | None = None
    """The recipe takes only so many of its first rows (`name[:3000]`)."""


def split_slice(name: str) -> tuple[str, int | None]:
    """A data set as a recipe names it: `name`, or `name[:3000]` for its first 3000 rows."""
    found = re.fullmatch(r"(.+)\[:(\d+)\]", name.strip())
    if found is None:
        return name.strip(), None
    rows = int(found.group(2))
    if rows == 0:
        raise ValueError(f"`dataset`: `{name.strip()}` takes no rows: name a number above 0.")
    return found.group(1).strip(), rows


def find_entries(dataset_names: Sequence[str] | str, dataset_dir: str | dict[str, Any]) -> list[Entry]:
    """Look data sets up in the host's registry."""
    folder = dataset_dir if isinstance(dataset_dir, str) else ""
    named = dataset_names.split(",") if isinstance(dataset_names, str) else dataset_names
    slices = [split_slice(name) for name in named]
    registered = registered_entries([name for name, _ in slices], dataset_dir, "retrieval")
    return [
        dataclasses.replace(make_entry(name, settings, folder), first_rows=first_rows)
        for (name, settings), (_, first_rows) in zip(registered, slices, strict=True)
    ]


def make_entry(name: str, settings: Mapping[str, Any], dataset_dir: str) -> Entry:
    """Check one entry of `dataset_info.json`."""
    formatting = settings.get("formatting", "alpaca")
    if formatting != "retrieval":
        raise ValueError(
            f"Data set `{name}` has `formatting: {formatting}`; this stage reads `retrieval` (docs/data.md)."
        )
    allowed = HOST_KEYS + RETRIEVAL_KEYS
    for key in settings:
        if key not in allowed:
            raise ValueError(f"Data set `{name}`: key `{key}` is not known{suggest(key, allowed)}")
    check_entry_values(settings, f"Data set `{name}`")
    columns = settings.get("columns") or {}
    roles = (*ROLES, *ID_ROLES)
    for role in columns:
        if role not in roles:
            raise ValueError(
                f"Data set `{name}`: `columns` names a column for `{role}`; the roles are {', '.join(roles)}"
                f"{suggest(role, roles)}"
            )
    _check_columns_of_ids(name, columns, settings)
    instruction = settings.get("instruction") or ""
    instructions = tuple(instruction) if isinstance(instruction, list) else (instruction,)
    if not instructions or not all(isinstance(text, str) for text in instructions):
        raise ValueError(f"Data set `{name}`: `instruction` must be text or a list of texts.")
    for text in instructions:
        if broken := broken_character(text):
            raise ValueError(f"Data set `{name}`: `instruction` holds {broken}.")
    for key in ("symmetric", "own_passages_only"):
        if not isinstance(settings.get(key, False), bool):
            raise ValueError(f"Data set `{name}`: `{key}` must be true or false, not {settings[key]!r}.")
    vectors = settings.get("teacher_vectors")
    if vectors is not None and not (isinstance(vectors, str) and vectors.endswith(".npy")):
        raise ValueError(f"Data set `{name}`: `teacher_vectors` must be the path of a .npy file, not {vectors!r}.")
    location, on_hub = _find_location(name, settings, dataset_dir)
    return Entry(
        name=name,
        location=location,
        on_hub=on_hub,
        task=settings.get("task") or name,
        instructions=instructions,
        symmetric=settings.get("symmetric", False),
        own_passages_only=settings.get("own_passages_only"),
        columns=dict(columns),
        subset=settings.get("subset"),
        split=settings.get("split"),
        folder=settings.get("folder"),
        hub_files=settings.get("file_name") if on_hub else None,
        num_samples=settings.get("num_samples"),
        corpus=_find_texts(name, "corpus", settings, dataset_dir),
        queries=_find_texts(name, "queries", settings, dataset_dir),
        objective=check_objective(settings.get("objective", {}), f"Data set `{name}`: `objective`"),
        teacher_vectors=vectors and os.path.normpath(os.path.join(dataset_dir, vectors)),
    )


def _check_columns_of_ids(name: str, columns: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """A column holds ids or texts, and ids need the file with their texts."""
    for role, ids in ID_ROLE_OF.items():
        key = "queries" if role == "query" else "corpus"
        if ids in columns and role in columns:
            raise ValueError(f"Data set `{name}`: `columns` names `{role}` and `{ids}`; name the one that is there.")
        if ids in columns and key not in settings:
            raise ValueError(f"Data set `{name}`: `columns` names `{ids}`; name their texts with `{key}`.")


def _find_texts(name: str, key: str, settings: Mapping[str, Any], dataset_dir: str) -> TextSource | None:
    """The value of `corpus` or `queries`: the path of a file, or where it lies in the keys of an entry."""
    value = settings.get(key)
    if value is None:
        return None
    where: Any = {"file_name": value} if isinstance(value, str) else value
    if not isinstance(where, Mapping) or not {"file_name", "hf_hub_url"} & where.keys():
        raise ValueError(
            f"Data set `{name}`: `{key}` must be the path of a file, or an object with `file_name` or `hf_hub_url`."
        )
    for given in where:
        if given not in SOURCE_KEYS:
            raise ValueError(f"Data set `{name}`: key `{given}` of `{key}` is not known{suggest(given, SOURCE_KEYS)}")
    check_entry_values(where, f"Data set `{name}`: `{key}`")
    columns = where.get("columns") or {}
    for role in columns:
        if role not in SOURCE_COLUMNS:
            raise ValueError(
                f"Data set `{name}`: `columns` of `{key}` names a column for `{role}`; it has "
                f"{', '.join(SOURCE_COLUMNS)}{suggest(role, SOURCE_COLUMNS)}"
            )
    location, on_hub = _find_location(name, where, dataset_dir)
    return TextSource(
        name=f"{name}: {key}",
        location=location,
        on_hub=on_hub,
        subset=where.get("subset"),
        split=where.get("split"),
        folder=where.get("folder"),
        hub_files=where.get("file_name") if on_hub else None,
        columns=dict(columns),
    )


def _find_location(name: str, settings: Mapping[str, Any], dataset_dir: str) -> tuple[str, bool]:
    if "hf_hub_url" in settings:
        return settings["hf_hub_url"], True
    if "file_name" in settings:
        return os.path.normpath(os.path.join(dataset_dir, settings["file_name"])), False
    raise ValueError(f"Data set `{name}` needs `file_name` or `hf_hub_url`, from which retrieval data is read.")


def load_hub_rows(source: Entry | TextSource, hub: HubOptions, *, streaming: bool = False) -> Any:
    """What a source names on the hub: the rows of one split, or of texts by split where none is named."""
    return load_from_hub(
        source.name,
        source.location,
        hub,
        subset=source.subset,
        split=split_on_hub(source),
        folder=source.folder,
        hub_files=source.hub_files,
        streaming=streaming,
    )


def split_on_hub(source: Entry | TextSource) -> str | None:
    """Rows to train on are those of `train` unless another split is named; None: all splits."""
    return (source.split or "train") if isinstance(source, Entry) else source.split
