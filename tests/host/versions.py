"""Versions of LLaMA-Factory that tests pretend to find."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from llamafactory_embed.host.contract import HOST_VERSIONS


# The first version above the supported ones; above all, where a lane of scripts/version_matrix.py pins one.
UNSUPPORTED_HOST = next((clause.version for clause in SpecifierSet(HOST_VERSIONS) if clause.operator == "<"), "99")
