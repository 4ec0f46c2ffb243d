"""What tests that run recipes in this process share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def single_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables that a launcher would have set must not reach a run in this process, nor may the run leave its own."""
    before = dict(os.environ)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "USE_RAY"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
