"""What a checkpoint keeps beside its weights so that it is used as it was trained: a dataclass in a JSON file."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from huggingface_hub import hf_hub_download

from ..files import write_json
from ..foreign import read_json_object


class CheckpointRecord:
    """Base of these dataclasses. A field without a default is one that every release has written."""

    file_name: ClassVar[str]
    described_as: ClassVar[str]
    """What a folder with such a record is, for error messages."""

    def save(self, folder: str | Path) -> None:
        """Write the record into a checkpoint's folder."""
        write_json(Path(folder) / self.file_name, dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read it from a checkpoint's folder."""
        path = Path(folder) / cls.file_name
        if not path.is_file():
            raise ValueError(f"{folder} is not {cls.described_as}: it holds no {cls.file_name}.")
        return cls._read(path)

    @classmethod
    def find(cls, folders: Sequence[str | Path], **hub: Any) -> Self | None:
        """The record of the last folder that has one: a model, then the adapters on it. `hub` (`token`, `revision`,
        `cache_dir`) is for those that are named by their place there."""
        path = find_last(folders, cls.file_name, **hub)
        return None if path is None else cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Self:
        values = read_json_object(path)
        fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ValueError(
                f"{path} has the key `{unknown[0]}`, which this release does not know: it was written by a newer "
                "llamafactory-embed, upgrade it."
            )
        missing = [name for name, each in fields.items() if name not in values and _is_required(each)]
        if missing:
            raise ValueError(f"{path} lacks the key `{missing[0]}`: copy the file from the checkpoint again.")
        hints = get_type_hints(cls)
        for name, value in values.items():
            if not _fits(value, hints[name]):
                raise ValueError(
                    f"{path}: `{name}` must be {_describe(hints[name])}, not {reprlib.repr(value)}: copy the "
                    "file from the checkpoint again."
                )
        return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fits(value: object, annotation: Any) -> bool:
    """Whether a value of JSON is one of this type, as `dataclasses.asdict` has written it."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind in (list, tuple):
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation)
        required = {each.name for each in dataclasses.fields(annotation) if _is_required(each)}
        return (
            isinstance(value, dict)
            and required <= value.keys() <= hints.keys()
            and all(_fits(each, hints[name]) for name, each in value.items())
        )
    if annotation is type(None):
        return value is None
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def _describe(annotation: Any) -> str:
    """A type in words."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(_describe(each) for each in inner))
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if kind in (list, tuple):
        return "a list"
    if kind is dict or dataclasses.is_dataclass(annotation):
        return "an object"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words[annotation]


def find_last(folders: Sequence[str | Path], name: str, **hub: Any) -> Path | None:
    """The file of that name in the last of these folders or repositories of the hub which has it."""
    for folder in reversed(folders):
        if os.path.isdir(folder):
            path = Path(folder) / name
        else:
            try:
                path = Path(hf_hub_download(str(folder), name, **hub))
            except (OSError, ValueError):  # it is not there, nobody can be asked, or this is no name for the hub
                continue
        if path.is_file():
            return path
    return None
