"""What a merge takes: which checkpoints, with which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..loading.weights import ADAPTER_CONFIG_NAME
from .options import Method


@dataclass(frozen=True)
class Merge:
    """What is merged: checkpoints with weights that sum to 1."""

    checkpoints: tuple[Path, ...]
    weights: tuple[float, ...]
    method: Method = "linear"
    full: bool = False

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Path],
        weights: Sequence[float] | None,
        method: Method = "linear",
        full: bool = False,
    ) -> Merge:
        """Weights are brought to a sum of 1; without any they are equal."""
        weights = weights or [1.0] * len(checkpoints)
        return cls(tuple(checkpoints), tuple(each / sum(weights) for each in weights), method, full)

    @property
    def stays_adapter(self) -> bool:
        """Whether the result is an adapter, too: only a weighted mean of adapters is one."""
        are_adapters = [(folder / ADAPTER_CONFIG_NAME).is_file() for folder in self.checkpoints]
        return all(are_adapters) and self.method == "linear" and not self.full


def last_checkpoints(run: str | Path, count: int) -> list[Path]:
    """The last `checkpoint-*` folders of a run, in the order in which they were written."""
    numbered = {
        int(folder.name.removeprefix("checkpoint-")): folder
        for folder in Path(run).glob("checkpoint-*")
        if folder.name.removeprefix("checkpoint-").isdecimal()
    }
    if len(numbered) < count:
        raise ValueError(f"`--last {count}` needs {count} folders `checkpoint-*`, and {run} has {len(numbered)}.")
    return [numbered[step] for step in sorted(numbered)[-count:]]
