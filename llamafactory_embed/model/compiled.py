"""torch.compile for packed rows: what lies between two attentions becomes one program, for rows of every length.

Each layer is compiled by itself and in place, so that the names of parameters, hooks and wrappers stay what they are.
Attention runs as ever, text by text (`attention_patch`): its calls follow the lengths.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..processor import CODE_GENERATOR


def compile_layers(decoder: nn.Module, backend: str = CODE_GENERATOR, mode: str | None = None) -> None:
    """Let every layer of a decoder run compiled from its next forward on, checkpointed or not.

    The layers of a model share their programs. There is one set of them for each of: with gradients, without, a row
    of a single token, rows beyond 4096 tokens. `backend` and `mode` are torch.compile's.

    The compiler guards sizes that are equal by chance in its first row (as many texts as heads, say) as if they had to
    be: then a later row makes it write one more program.
    """
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"`torch_compile: true`: {type(decoder).__name__} has no layers to compile: leave it out.")
    settings = _settings(backend, mode)
    for layer in layers:
        layer.compile(backend=backend, dynamic=True, **settings)


def _settings(backend: str, mode: str | None) -> dict[str, Any]:
    """What torch.compile is told: a mode, or the options that it stands for with one of ours."""
    if backend != CODE_GENERATOR:
        return {"mode": mode}
    from torch._inductor import list_mode_options

    # Dropout draws what it draws without a compiler: GradCache and checkpointing draw the same numbers again.
    return {"options": {**list_mode_options(mode or "default"), "fallback_random": True}}
