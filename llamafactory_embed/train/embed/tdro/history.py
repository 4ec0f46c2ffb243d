"""Weights, losses and measures of the tasks, update by update."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .measure import UpdateMeasure
from .weight_files import replace_text


HISTORY_NAME = "task_weights.jsonl"

Entry = dict[str, Any]
"""`step`, `learning_rate`, and by task `weight`, `queries`, `loss`, `reference_loss`, `measure`; a task that had no
query in the update has a weight only."""

LOGGED = ("weight", "loss", "reference_loss", "measure")


@dataclass
class WeightHistory:
    """One entry an update; the file in `folder` grows with them, if there is a folder."""

    tasks: Sequence[str]
    folder: Path | None
    entries: list[Entry] = field(default_factory=list)
    _is_begun: bool = False

    def add(self, step: int, learning_rate: float, weights: Tensor, measure: UpdateMeasure) -> None:
        """Note an update."""
        present = (measure.counts > 0).tolist()

        def by_task(values: Tensor) -> dict[str, float]:
            numbers = zip(self.tasks, values.tolist(), present, strict=True)
            return {task: value for task, value, is_present in numbers if is_present}

        entry: Entry = {
            "step": step,
            "learning_rate": learning_rate,
            "weight": dict(zip(self.tasks, weights.tolist(), strict=True)),
            "queries": {task: int(count) for task, count in by_task(measure.counts).items()},
            "loss": by_task(measure.losses),
            "measure": by_task(measure.measures),
        }
        if measure.reference_losses is not None:
            entry["reference_loss"] = by_task(measure.reference_losses)
        self.entries.append(entry)
        if self.folder is not None:
            self._append(self.folder, entry)

    def _append(self, folder: Path, entry: Entry) -> None:
        if not self._is_begun:  # what an earlier run has left there is another history
            folder.mkdir(parents=True, exist_ok=True)
            self.save(folder)
            self._is_begun = True
            return
        with (folder / HISTORY_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def save(self, folder: Path) -> None:
        """Write all entries."""
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries)
        replace_text(folder / HISTORY_NAME, "".join(lines))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint's entries."""
        lines = (folder / HISTORY_NAME).read_text(encoding="utf-8").splitlines()
        self.entries = [json.loads(line) for line in lines]
        self._is_begun = False

    def means_after(self, step: int) -> dict[str, float]:
        """Means over the updates after a step, as loggers want them: `loss/<task>` and so on; the weight is the
        latest."""
        recent = list(itertools.takewhile(lambda entry: entry["step"] > step, reversed(self.entries)))
        if not recent:
            return {}
        means = {f"weight/{task}": recent[0]["weight"][task] for task in self.tasks}
        for name in LOGGED[1:]:
            for task in self.tasks:
                values = [entry[name][task] for entry in recent if task in entry.get(name, {})]
                if values:
                    means[f"{name}/{task}"] = sum(values) / len(values)
        return means
