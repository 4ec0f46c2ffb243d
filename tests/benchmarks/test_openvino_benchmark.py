"""The benchmark of OpenVINO graphs gives every side its model and compares what is equal. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import openvino_encoding
from benchmarks.openvino_encoding import CASE, FLOAT32, INT8, OURS, TORCH, Settings
from benchmarks.processes import Variant


SIZES = {OURS: 40.0, TORCH: 40.0, FLOAT32: 44.0, INT8: 11.0}
CPU_SECONDS = {OURS: 6.0, TORCH: 8.0, FLOAT32: 4.0, INT8: 2.0}


def test_the_sides_get_their_models_and_are_compared_in_the_right_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Variant] = []

    def answer(variant: Variant) -> dict[str, Any]:
        asked.append(variant)
        return {
            "runs": [
                {"case": CASE, "variant": side, "repeat": 0, "cpu_seconds": CPU_SECONDS[side]}
                for side in variant.request["models"]
            ]
        }

    monkeypatch.setattr(openvino_encoding, "save_checkpoint", lambda folder, size: folder / "checkpoint")
    monkeypatch.setattr(openvino_encoding, "export_graphs", lambda checkpoint, folder: (SIZES, {FLOAT32: 1.0}))
    monkeypatch.setattr(openvino_encoding, "run_fresh", answer)
    result = openvino_encoding.measure(Settings(texts=12), 1, tmp_path)

    models = asked[0].request["models"]
    assert models[OURS] == models[TORCH] == str(tmp_path / "checkpoint")
    assert models[FLOAT32] != models[INT8]
    assert [figure.value for figure in result.figures] == [2.0, 4.0, 1.5, 0.25]
    assert result.table[1] == [CASE, OURS, "2", "6.00", "40.0"]


def test_sides_that_compute_something_else_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text('["a", "b"]')
    vectors = {OURS: np.zeros((2, 3)), TORCH: np.full((2, 3), 1e-3)}
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # other tests share this process
    monkeypatch.setattr(openvino_encoding, "open_side", lambda side, model, size: lambda texts: vectors[side])
    request = {"texts": str(texts), "models": vectors, "batch_size": 8, "warm_up_texts": 1, "repeats": 2}
    with pytest.raises(ValueError, match=r"differ by 0\.001, no comparison is fair"):
        openvino_encoding.time_sides(request)
    vectors[TORCH] = vectors[OURS]
    assert [run["variant"] for run in openvino_encoding.time_sides(request)["runs"]] == [OURS, TORCH, TORCH, OURS]
