"""Versions of LLaMA-Factory that tests pretend to find."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from llamafactory_embed.host.contract import HOST_VERSIONS


# The first version above the supported ones.
(UNSUPPORTED_HOST,) = (clause.version for clause in SpecifierSet(HOST_VERSIONS) if clause.operator == "<")
