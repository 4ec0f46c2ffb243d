"""Tests that write and build programs with torch's code generator, which takes minutes: `make compiler` runs them."""

from __future__ import annotations

import os

import pytest


needs_compiler = pytest.mark.skipif(
    os.environ.get("RUN_COMPILER") != "1", reason="takes minutes: `make compiler` runs it (RUN_COMPILER=1)"
)
