"""Seam: the models of EleutherAI's evaluation harness, which has no entry point for those of other packages."""

from __future__ import annotations

from types import ModuleType


def apply(models: ModuleType) -> None:
    """Add `--model ddm`; its class is imported on first use."""
    from lm_eval.api.registry import model_registry

    model_registry.register("ddm", target="llamafactory_embed.serve.lm_eval:DiffusionHarnessModel")
