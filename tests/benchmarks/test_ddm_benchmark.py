"""The benchmark of a diffusion step compares what is equal. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ddm_step
from benchmarks.inputs import ModelSize


def test_both_sides_compute_the_same_loss(tmp_path: Path) -> None:
    size = ModelSize(
        layers=2, hidden_size=32, intermediate_size=48, heads=4, key_value_heads=2, vocabulary=400, longest=96
    )
    settings = ddm_step.Settings(model=size, vocabulary=700, rows=4, row_length=40)
    model = ddm_step.save_large_vocabulary(tmp_path / "model", settings)
    request = {"model": str(model), **ddm_step.make_rows(settings, [40, 31, 12, 7])}
    ours, theirs = ddm_step.ours(request), ddm_step.all_logits(request)
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], abs=1e-5)
    assert ours["hidden"] == theirs["hidden"]
    assert 0.2 < ours["hidden"] < 0.8
