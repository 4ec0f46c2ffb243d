"""The one room that touches LLaMA-Factory's internals.

Each seam is a module with a function `apply(module)`, called right after the host's module has been executed
(`llamafactory_embed.autoload`). A host that does not meet the contract switches all seams off with one sentence.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from ..stages.stage import Stage


__all__ = ["Stage", "apply_seam"]

_switched_off = False


def apply_seam(name: str, module: ModuleType) -> None:
    """Adjust a host module that was just executed."""
    from . import contract  # not needed, and not paid for, before the host is imported

    global _switched_off
    if _switched_off:
        return

    try:
        contract.check_version()
        importlib.import_module(f"{__name__}.{name}").apply(module)
    except contract.HostMismatchError as mismatch:
        _switched_off = True
        contract.report_mismatch(mismatch)
