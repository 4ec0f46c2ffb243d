"""Recipes as things to share: found, shown, written, checked, compared, packed, and converted from other tools."""

from .check import check_recipe, inspect_recipe
from .report import Problem, Report


__all__ = ["Problem", "Report", "check_recipe", "inspect_recipe"]
