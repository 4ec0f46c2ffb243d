"""CoNLL-2003 and real weights: what a frozen, shallow SmolLM2 knows of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train.tuner import run_exp

from tests.train.embed.word_task.test_word_task import recipe


pytestmark = pytest.mark.real


def test_a_frozen_model_knows_names(smollm2: Path, conll2003: Path, tmp_path: Path) -> None:
    """Far above calling every word `O`, which 83 % of the words are and which finds no entity at all."""
    info: dict[str, Any] = {
        part: {"file_name": str(conll2003 / f"{part}.txt"), "formatting": "words"} for part in ("train", "valid")
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    run_exp(
        recipe(smollm2, tmp_path / "out")
        | {
            "dataset_dir": str(tmp_path),
            "dataset": "train",
            "eval_dataset": "valid",
            "max_samples": 600,
            "max_steps": 300,
            "learning_rate": 2e-3,
        }
    )
    found = json.loads((tmp_path / "out" / "eval_results.json").read_text("utf-8"))
    assert found["eval_f1"] > 0.25
    assert found["eval_accuracy"] > 0.87
