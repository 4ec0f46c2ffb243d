"""`stop_after_n_steps`: end a run before the end of its schedule."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAfterSteps(TrainerCallback):
    """Ends training at a step. The schedule stays that of the whole run, and the run ends as any other: with its last
    evaluation, checkpoint and card."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_training_stop |= state.global_step >= self.steps
        return control
