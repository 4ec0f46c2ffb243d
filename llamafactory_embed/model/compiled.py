"""torch.compile for packed rows: what lies between two attentions becomes one program, for rows of every length.

Each layer is compiled by itself and in place, so that names of parameters, hooks and wrappers stay what they are.
Attention runs as ever, text by text (`attention_patch`): its calls follow the lengths.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


CODE_GENERATOR = "inductor"  # the backend that writes programs of its own; others need no compiler


def compile_layers(decoder: nn.Module, backend: str = CODE_GENERATOR, mode: str | None = None) -> None:
    """Let every layer of a decoder run compiled from its next forward on, checkpointed or not."""
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"`torch_compile: true`: {type(decoder).__name__} has no layers to compile: leave it out.")
    settings: dict[str, Any] = {"mode": mode}
    if backend == CODE_GENERATOR:
        from torch._inductor import list_mode_options

        # Dropout draws what it draws without a compiler: GradCache and checkpointing draw the same numbers again.
        settings = {"options": {**list_mode_options(mode or "default"), "fallback_random": True}}
    for layer in layers:
        layer.compile(backend=backend, dynamic=True, **settings)


def missing_for_compilation(device: str, backend: str = CODE_GENERATOR) -> str | None:
    """What this machine lacks to compile for a device, and how to get it: the end of a sentence; None if nothing."""
    if backend != CODE_GENERATOR:
        return None
    if device != "cpu":
        return None if importlib.util.find_spec("triton") else "the package triton: `pip install triton`"
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler, and there is no `{compiler}`: install it (`apt install g++`), or name yours in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header files: install them (`apt install python3-dev`)"
    return None


def require_compiler(device: torch.device, backend: str) -> None:
    """Refuse to train where the first step would fail."""
    missing = missing_for_compilation(device.type, backend)
    if missing is not None:
        raise ValueError(f"`torch_compile: true` needs {missing}, or leave it out.")
