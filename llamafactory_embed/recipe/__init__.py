"""Recipes as things to share: found, shown, written, checked, compared, packed, and converted from other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .report import Problem, Report


if TYPE_CHECKING:
    from .check import check_recipe, inspect_recipe

__all__ = ["Problem", "Report", "check_recipe", "inspect_recipe"]


def __getattr__(name: str) -> Any:
    """The check's modules are imported when they are asked for: a help text needs none of them."""
    if name in ("check_recipe", "inspect_recipe"):
        from . import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
