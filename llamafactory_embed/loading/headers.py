"""What the headers of weight files tell, without the weights: whether the files are whole, and how much they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .attention_pool import load_without_code
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
        shapes_of_file(file)


def measure_weights(folder: Path) -> Weights:
    """How much a folder holds."""
    files = files_of(folder)
    shapes = [each for file in files for each in shapes_of_file(file).values()]
    return Weights(
        parameters=sum(math.prod(shape) for shape, _ in shapes),
        size=sum(file.stat().st_size for file in files),
        dtypes=tuple(sorted({dtype for _, dtype in shapes})),
    )


def shapes_of_file(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every weight, by its name."""
    if file.suffix != ".safetensors":
        loaded = load_without_code(file, "meta")
        return {name: (tuple(each.shape), str(each.dtype).removeprefix("torch.")) for name, each in loaded.items()}
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            return {name: (tuple(each.get_shape()), name_of(each.get_dtype())) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut off or damaged ({error}): copy it from the checkpoint again.") from error


def name_of(dtype: str) -> str:
    """A type's name in torch."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return str(names[dtype]).removeprefix("torch.") if dtype in names else dtype.lower()
