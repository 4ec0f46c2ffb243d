"""The benchmark of OpenVINO graphs asks every side for the same texts on one thread. Nothing is timed here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import openvino_encoding
from benchmarks.openvino_encoding import CASE, FLOAT32, INT8, OURS, TORCH, Settings
from benchmarks.processes import Run, Variant


SIZES = {OURS: 40.0, TORCH: 40.0, FLOAT32: 44.0, INT8: 11.0}
CPU_SECONDS = {OURS: 6.0, TORCH: 8.0, FLOAT32: 4.0, INT8: 2.0}


def test_the_sides_are_asked_alike_and_compared_in_the_right_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Mapping[str, Any]] = {}

    def take_turns(cases: Mapping[str, Mapping[str, Variant]], repeats: int) -> list[Run]:
        asked.update({side: variant.request for side, variant in cases[CASE].items()})
        return [
            {"case": CASE, "variant": side, "repeat": 0, "cpu_seconds": CPU_SECONDS[side], "peak_mib": 1.0}
            for side in asked
        ]

    monkeypatch.setattr(openvino_encoding, "save_checkpoint", lambda folder, size: folder / "checkpoint")
    monkeypatch.setattr(openvino_encoding, "export_graphs", lambda checkpoint, folder: (SIZES, {FLOAT32: 1.0}))
    monkeypatch.setattr(openvino_encoding, "take_turns", take_turns)
    monkeypatch.setattr(openvino_encoding, "check_same_embeddings", lambda ours, theirs: None)
    result = openvino_encoding.measure(Settings(texts=12), 1, tmp_path)

    assert len({request["texts"] for request in asked.values()}) == 1
    assert [asked[side]["backend"] for side in (TORCH, FLOAT32, INT8)] == ["torch", "openvino", "openvino"]
    assert asked[OURS]["checkpoint"] == asked[TORCH]["checkpoint"] != asked[FLOAT32]["checkpoint"]
    assert len({request["output"] for request in asked.values()}) == 4
    assert [figure.value for figure in result.figures] == [2.0, 4.0, 1.5, 0.25]
    assert result.table[1] == [CASE, OURS, "2", "6.00", "1", "40.0"]
