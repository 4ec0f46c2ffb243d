"""What a trained classifier of words remembers, and its files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor

from ....files import whole_file
from ....hparams.word_task import WordTaskOptions
from ....model.records import CheckpointRecord
from ....model.tensor_files import load_safetensors


RECORD_NAME = "word_task.json"
CLASSIFIER_NAME = "word_classifier.safetensors"


@dataclass(frozen=True)
class WordTaskRecord(CheckpointRecord):
    """Labels, and how words are read; a classifier is worth nothing on hidden states that are read otherwise."""

    file_name: ClassVar[str] = RECORD_NAME
    described_as: ClassVar[str] = "a checkpoint of a classifier of words"

    word_task: str
    labels: list[str]
    attention: str
    sliding_window: str
    retroactive_labels: str
    merge_subwords: bool
    space_before_words: bool
    base_model: str
    merged_adapters: list[str]

    def check_read_alike(self, options: WordTaskOptions, space_before_words: bool, folder: Path) -> None:
        """Refuse a recipe that reads words in another way than this classifier was trained on."""
        asked: dict[str, Any] = dataclasses.asdict(options) | {"space_before_words": space_before_words}
        for name in (
            "word_task",
            "attention",
            "sliding_window",
            "retroactive_labels",
            "merge_subwords",
            "space_before_words",
        ):
            trained = getattr(self, name)
            if trained != asked[name]:
                raise ValueError(
                    f"The classifier in {folder} was trained with `{name}: {_written(trained)}`, the recipe says "
                    f"`{_written(asked[name])}`: set it alike."
                )


def save_classifier(folder: Path, state: dict[str, Tensor]) -> None:
    with whole_file(folder / CLASSIFIER_NAME) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, temporary)


def load_classifier(folder: Path) -> dict[str, Tensor]:
    return load_safetensors(folder / CLASSIFIER_NAME)


def find_classifier(candidates: list[str | None]) -> Path | None:
    """The first of these folders that holds one."""
    for name in candidates:
        if name and Path(name, CLASSIFIER_NAME).is_file():
            return Path(name)
    return None


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
