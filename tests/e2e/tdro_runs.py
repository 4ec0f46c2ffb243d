"""Recipes of `stage: tdro` on the tiny models and data of `contrastive_runs`, and the weights that came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


# Tasks of the contrastive runs, compared with 2 of their 3 negatives; a temperature at which tiny models differ.
TDRO: dict[str, Any] = {
    "stage": "tdro",
    "num_negatives": 2,
    "dataset_weights": "uniform",
    "loss_temperature": 0.1,
    "tdro_lr": 0.5,
}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run or a checkpoint."""
    return [json.loads(line) for line in (folder / "task_weights.jsonl").read_text(encoding="utf-8").splitlines()]


def history_numbers(folder: Path) -> list[float]:
    """All numbers of a history, in their order, to compare runs by."""
    numbers: list[float] = []
    for entry in read_history(folder):
        for value in entry.values():
            numbers += value.values() if isinstance(value, dict) else [value]
    return numbers
