"""Seam: LLaMA Board."""

from __future__ import annotations

from types import ModuleType


def apply(interface: ModuleType) -> None:
    """List our stages beside the host's."""
