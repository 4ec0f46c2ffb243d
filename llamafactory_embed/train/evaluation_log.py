"""The evaluations of a run in a file of its own, as they come. The host's log of a run has a few names only, none of
ours among them; LLaMA Board draws its picture from both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import EVALUATIONS_NAME, write_text


class EvaluationLog(TrainerCallback):
    """Appends a line with the step and the metrics for every evaluation. A run that goes on keeps the lines of the
    steps that it goes on from; a new run begins the file anew."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = Path(args.output_dir, EVALUATIONS_NAME)
        if state.is_world_process_zero and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                line for line in lines if line.endswith("}\n") and 0 < state.global_step >= json.loads(line)["step"]
            ]
            write_text(path, "".join(kept))

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
