"""Task weights as the files of tDRO, which `dataset_weights` of stage contrastive reads (and tDRO reads ours)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .task_weights import TaskWeights


WeightTable = dict[str, dict[str, Any]]


def weight_table(weights: Mapping[str, float], sizes: Mapping[str, int]) -> WeightTable:
    """Weights by task as a table of tDRO. `epoch` is how often a task's rows are seen while all rows of the file's
    tasks are seen once: weight * (rows of the tasks in the file) / own rows."""
    rows = sum(sizes[task] for task in weights)
    return {
        "domain_ids": {task: number for number, task in enumerate(weights)},
        "domain_weights": dict(weights),
        "size": {task: sizes[task] for task in weights},
        "epoch": {task: weight * rows / sizes[task] for task, weight in weights.items()},
    }


def heaviest(weights: Mapping[str, float], percent: int) -> dict[str, float]:
    """That share of the tasks, rounded down, the heaviest first and all alike."""
    count = len(weights) * percent // 100
    chosen = sorted(weights, key=lambda task: -weights[task])[:count]
    return {task: 1 / count for task in chosen}


def weight_tables(
    tasks: Sequence[str], sizes: Sequence[int], weights: TaskWeights, percents: Sequence[int]
) -> dict[str, WeightTable]:
    """The tables of a run by the names of their files."""
    rows = dict(zip(tasks, sizes, strict=True))

    def by_task(values: Any) -> dict[str, float]:
        return dict(zip(tasks, values.tolist(), strict=True))

    current = by_task(weights.current)
    tables = {
        "curr_weights.json": weight_table(current, rows),
        "mean_weights.json": weight_table(by_task(weights.mean), rows),
        "ema_weights.json": weight_table(by_task(weights.moving_average), rows),
    }
    for percent in percents:
        tables[f"top{percent}_weights.json"] = weight_table(heaviest(current, percent), rows)
    return tables


def write_weight_files(folder: str | Path, tables: Mapping[str, WeightTable]) -> None:
    """Write them, except tables of no task, which nothing could be trained on."""
    for name, table in tables.items():
        if table["domain_ids"]:
            replace_text(Path(folder) / name, json.dumps(table, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
