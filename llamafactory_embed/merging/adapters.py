"""The weighted mean of LoRA adapters on one base model, as an adapter.

The mean of what adapters add is not what the means of their matrices add. Laid side by side,

    A = [A₁; A₂; …],  B = [w₁s₁B₁, w₂s₂B₂, …],  so that  B A = w₁s₁B₁A₁ + w₂s₂B₂A₂ + …

where sᵢ is an adapter's scale, they are exact: the rank of the result is the sum of the ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import whole_file, write_json
from ..foreign import read_json_object
from ..loading.weights import ADAPTER_CONFIG_NAME, ADAPTER_NAME
from ..model.tensor_files import load_safetensors
from .tensors import merge_tensors


# The two matrices of a layer: which dimension of them is the rank.
RANK_DIMENSION = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
MATRIX = re.compile(r"^(?P<module>.+)\.(?P<matrix>lora_(?:embedding_)?[AB])(?:\.weight)?$")
SETTINGS_THAT_DIFFER = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
NOT_ADDED_UP = {"use_dora": "DoRA", "use_qalora": "QALoRA", "alora_invocation_tokens": "aLoRA"}


def merge_adapters(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    """Write the mean of adapters of the same modules."""
    configs = [_read_config(folder) for folder in folders]
    adapters = [load_safetensors(folder / ADAPTER_NAME) for folder in folders]
    _check_alike(folders, configs, adapters)

    merged: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in adapters[0]:
        tensors = [adapter[name] for adapter in adapters]
        found = MATRIX.match(name)
        if found is None:  # a module that was trained as a whole
            merged[name] = merge_tensors(tensors, weights, "linear", name)
            continue
        module, matrix = found["module"].removeprefix("base_model.model."), found["matrix"]
        if matrix.endswith("B"):
            scales = [scale_of(config, module) for config in configs]
            tensors = [
                (weight * scale * each.float()).to(each.dtype)
                for each, weight, scale in zip(tensors, weights, scales, strict=True)
            ]
        merged[name] = torch.cat(tensors, dim=RANK_DIMENSION[matrix])
        ranks[module] = merged[name].shape[RANK_DIMENSION[matrix]]

    with whole_file(target / ADAPTER_NAME) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in merged.items()}, temporary, metadata={"format": "pt"})
    write_json(target / ADAPTER_CONFIG_NAME, configs[0] | _settings(ranks))


def scale_of(config: Mapping[str, Any], module: str) -> float:
    """What PEFT multiplies a module's B A by."""
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: float) -> float:
    """PEFT's rule: a pattern is the end of a module's name, or a regular expression for it."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The scales are in B already, so that alpha equals the rank in every module."""
    usual = max(ranks.values())
    unusual = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": dict(unusual),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / ADAPTER_CONFIG_NAME)


def _check_alike(
    folders: Sequence[Path], configs: Sequence[Mapping[str, Any]], adapters: Sequence[Mapping[str, Tensor]]
) -> None:
    for folder, config in zip(folders, configs, strict=True):
        kind = next((name for key, name in NOT_ADDED_UP.items() if config.get(key)), None)
        kind = kind or (config.get("peft_type") if config.get("peft_type") != "LORA" else None)
        if kind is not None:
            raise ValueError(f"{folder} holds an adapter of {kind}, whose mean is no adapter: merge with `--full`.")
    for folder, adapter in zip(folders[1:], adapters[1:], strict=True):
        odd = sorted(set(adapter) ^ set(adapters[0]))
        if odd:
            raise ValueError(
                f"The adapters in {folders[0]} and {folder} are not on the same modules: only one of them has "
                f"`{odd[0]}`; merge with `--full`."
            )
