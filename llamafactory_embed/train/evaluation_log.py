"""The evaluations of a run in a file of its own, as they come. The host's log of a run has a few names only, none of
ours among them; LLaMA Board draws its picture from both."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import EVALUATIONS_NAME, write_text


def lines_up_to(step: int, log: str) -> str:
    """The lines of a log of evaluations that a run keeps which goes on from a step; what a crash cut off belongs to
    none, and a run that begins at step 0 keeps none."""
    kept = []
    for line in log.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            if line.endswith("}\n") and json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
    return "".join(kept)


class EvaluationLog(TrainerCallback):
    """Appends a line with the step and the metrics for every evaluation. A run that goes on keeps the lines of the
    steps that it goes on from; a new run begins the file anew."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = Path(args.output_dir, EVALUATIONS_NAME)
        if state.is_world_process_zero and path.is_file():
            write_text(path, lines_up_to(state.global_step, path.read_text(encoding="utf-8", errors="replace")))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir, EVALUATIONS_NAME)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(metrics or {})}, ensure_ascii=False) + "\n")
