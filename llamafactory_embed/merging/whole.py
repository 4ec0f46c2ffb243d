"""The merge of full weights, file by file: of each weight, one tensor of every checkpoint is in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftConfig
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from ..files import write_json
from ..foreign import read_json_object
from ..loading.weights import find_weight_files, load_language_model
from ..model.tensor_files import load_without_code, read_shapes
from .options import Method
from .tensors import merge_tensors


MAX_SHARD_SIZE = "5GB"


class WeightReader:
    """The weights of a checkpoint by name, read when they are asked for."""

    def __init__(self, folder: Path, closing: contextlib.ExitStack) -> None:
        self.folder = folder
        self._sources: dict[str, object] = {}
        for file in find_weight_files(folder):
            read_shapes(file)  # refuses what is cut off or damaged
            if file.suffix == ".safetensors":
                opened = closing.enter_context(safe_open(file, framework="pt"))
                self._sources |= dict.fromkeys(opened.keys(), opened)
            else:
                self._sources |= load_without_code(file, mmap=True)

    @property
    def names(self) -> list[str]:
        """All weights, in the files' order."""
        return list(self._sources)

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        return source if isinstance(source, Tensor) else source.get_tensor(name)  # type: ignore[attr-defined]


def merge_whole_weights(
    folders: Sequence[Path],
    weights: Sequence[float],
    method: Method,
    target: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the merge of full weights, in `dtype` if it is given, and the configuration of the first checkpoint."""
    configs = _read_configs(folders)
    with contextlib.ExitStack() as closing:
        readers = [WeightReader(folder, closing) for folder in folders]
        _check_same_names(readers)
        merged = {
            name: merge_tensors([reader[name] for reader in readers], weights, method, name)
            for name in readers[0].names
        }
    if dtype is not None:
        merged = {name: each.to(dtype) if each.is_floating_point() else each for name, each in merged.items()}
        configs[0] |= {"dtype": str(dtype).removeprefix("torch.")}
    save_torch_state_dict(merged, target, max_shard_size=MAX_SHARD_SIZE)
    write_json(target / "config.json", configs[0])


def _read_configs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    configs = [read_json_object(folder / "config.json") for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        if config.get("architectures") != configs[0].get("architectures"):
            raise ValueError(
                f"{folders[0]} is a {configs[0].get('architectures')} and {folder} a {config.get('architectures')}: "
                "merge checkpoints of one architecture."
            )
    return configs


def _check_same_names(readers: Sequence[WeightReader]) -> None:
    own = set(readers[0].names)
    for reader in readers[1:]:
        odd = sorted(own ^ set(reader.names))
        if odd:
            raise ValueError(
                f"{readers[0].folder} and {reader.folder} do not hold the same weights: only one of them has "
                f"`{odd[0]}`; merge checkpoints of one architecture, saved in one layout."
            )


def write_whole(folder: Path, base_model: str | None, merged_adapters: Sequence[str], target: Path) -> torch.dtype:
    """Write an adapter's base model with the adapters merged, in float32 so that nothing is rounded before the merge;
    return the type of the base model's weights."""
    model = load_language_model(folder, base_model, merged_adapters, dtype=torch.float32)
    base = base_model or PeftConfig.from_pretrained(folder).base_model_name_or_path
    model.save_pretrained(target)
    return AutoConfig.from_pretrained(base).dtype or torch.float32
