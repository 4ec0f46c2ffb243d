"""The host's own stages give the same losses, bit for bit, whether the plugin is active or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from . import stock_stages


@pytest.mark.process
def test_stock_stages_are_untouched(run, tiny_llama: Path, tmp_path: Path) -> None:
    losses = {}
    for name, variables in {"active": {}, "disabled": {"LLAMAFACTORY_EMBED_DISABLE": "1"}}.items():
        folder = tmp_path / name
        done = run(sys.executable, stock_stages.__file__, str(tiny_llama), str(folder), **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        losses[name] = json.loads((folder / "losses.json").read_text(encoding="utf-8"))

    assert set(losses["active"]) == set(stock_stages.STAGES)
    assert all(len(values) == 3 for values in losses["active"].values())
    assert losses["active"] == losses["disabled"]
