"""The benchmark of the samplers compares what is equal, and counts what it says. Nothing is timed here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import sampling_speed
from benchmarks.processes import Variant
from benchmarks.sampling_speed import BOS, FAST, PLAIN, Settings, measure, patterns


SETTINGS = Settings(
    hidden_size=16, layers=1, heads=2, period=3, new_tokens=8, block_length=4, training_steps=2, prompts=3
)


def test_a_pattern_goes_on() -> None:
    texts = patterns(SETTINGS, 5, seed=1)
    assert texts.shape == (5, 1 + 3 + 8)
    assert (texts[:, 0] == BOS).all()
    assert torch.equal(texts[:, 4:], texts[:, 1:-3])
    assert not torch.equal(texts, patterns(SETTINGS, 5, seed=2))


def test_both_samplers_write_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, in place of one for each."""

    def take_turns(cases: dict[str, dict[str, Variant]], repeats: int) -> list[dict[str, Any]]:
        return [
            {"case": case, "variant": name, "repeat": 0, **sampling_speed.run(dict(variant.request))}
            for case, variants in cases.items()
            for name, variant in variants.items()
        ]

    monkeypatch.setattr(sampling_speed, "take_turns", take_turns)
    result = measure(SETTINGS, 1, tmp_path)
    forwards = {run["variant"]: run["forwards"] for run in result.runs}
    assert forwards[PLAIN] == 8
    assert forwards[FAST] <= 8
    (figure,) = result.figures
    speeds = {run["variant"]: run["tokens_per_second"] for run in result.runs}
    assert figure.value == pytest.approx(speeds[FAST] / speeds[PLAIN])
    assert result.settings == dataclasses.asdict(SETTINGS)
