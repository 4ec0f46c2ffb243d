"""What the headers of weight files tell, without the weights: whether the files are whole, and how much they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..model.tensor_files import read_shapes
from .llm2vec_adapters import OLD_WEIGHTS_FILE, WEIGHTS_FILE
from .weights import ADAPTER_CONFIG_NAME, find_weight_files


@dataclass(frozen=True)
class Weights:
    """The weights in some files."""

    parameters: int
    size: int
    """Bytes on the disk."""
    dtypes: tuple[str, ...]


def files_of(folder: Path) -> list[Path]:
    """The weight files of a model or of an adapter."""
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return find_weight_files(folder)
    for name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE):
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder} holds no {WEIGHTS_FILE}, the weights of its adapter: copy it there.")


def check_weights(folder: Path) -> None:
    """Refuse files that are cut off or damaged, and shards that are missing, before a model is made for them."""
    for file in files_of(folder):
        read_shapes(file)


def measure_weights(folder: Path) -> Weights:
    """How much a folder holds."""
    files = files_of(folder)
    shapes = [each for file in files for each in read_shapes(file).values()]
    return Weights(
        parameters=sum(math.prod(shape) for shape, _ in shapes),
        size=sum(file.stat().st_size for file in files),
        dtypes=tuple(sorted({name_of(dtype) for _, dtype in shapes})),
    )


def name_of(dtype: str) -> str:
    """A type's name in torch; safetensors has shorter ones."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return names.get(dtype, dtype.lower())
