"""What a checkpoint keeps beside its weights so that it is used as it was trained: a dataclass in a JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import hf_hub_download

from ..files import write_json


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
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): copy it from the checkpoint again.") from error
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
        return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


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
