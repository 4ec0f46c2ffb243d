"""Options of `llamafactory-embed merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..hparams.option import REQUIRED, option


Method = Literal["linear", "slerp"]


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, and how."""

    checkpoints: list[str] = option(
        REQUIRED, "Checkpoints of one architecture; with --last, the output folder of one run.", positional=True
    )
    output: str = option(REQUIRED, "Folder to write; it must not exist.", metavar="FOLDER")
    method: Method = option(
        "linear",
        "linear: the weighted mean of all weights; slerp: along the arc between two checkpoints, which keeps the "
        "length of every weight.",
    )
    weights: list[float] | None = option(
        None, "A weight for each checkpoint, brought to a sum of 1; empty: equal weights.", metavar="WEIGHT"
    )
    last: int | None = option(None, "Merge the last N `checkpoint-*` of a run.", minimum=2)
    full: bool = option(False, "Write full weights even where all checkpoints are adapters on one base model.")
    search: list[str] | None = option(
        None,
        "Choose the weights by the mean main score on these tasks, named as for `eval`; the score of the chosen "
        "weights on them is then no longer a held-out one.",
        metavar="TASK",
    )
    dataset_dir: str = option(
        "data", "Folder of `dataset_info.json`, for tasks of --search named as in a recipe.", metavar="FOLDER"
    )
    overwrite: bool = option(False, "Replace an earlier merge in FOLDER.")

    def __post_init__(self) -> None:
        if self.last is not None and len(self.checkpoints) != 1:
            raise ValueError(f"`--last` takes the output folder of one run, not {len(self.checkpoints)} folders.")
        count = self.last or len(self.checkpoints)
        if count < 2:
            raise ValueError("One checkpoint is no merge: name at least two, or the folder of a run and `--last N`.")
        if self.method == "slerp" and count != 2:
            raise ValueError(
                f"`--method slerp` lies between two checkpoints, not {count}: merge two of them, and the result with "
                "the next."
            )
        if self.weights is None:
            return
        if self.search is not None:
            raise ValueError("`--search` chooses the weights that `--weights` gives: leave one of them out.")
        if len(self.weights) != count:
            raise ValueError(f"`--weights` has {len(self.weights)} weights for {count} checkpoints.")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"`--weights` must not be negative, nor all of them 0, as {self.weights} are.")
