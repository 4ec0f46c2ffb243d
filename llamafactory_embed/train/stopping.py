"""`stop_after_n_steps`: end a run before the end of its schedule."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy


class StopAfterSteps(TrainerCallback):
    """Ends training at a step. The schedule stays that of the whole run, and the run ends as at `max_steps`: with its
    last evaluation, checkpoint and card."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= self.steps:  # the Trainer would take one more step before it asks
            raise ValueError(
                f"`resume_from_checkpoint` has reached step {state.global_step}, and `stop_after_n_steps: "
                f"{self.steps}` leaves nothing to train: raise it, or use the checkpoint as it is."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= self.steps:
            control.should_training_stop = True
            is_late_enough = args.eval_delay <= state.global_step
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS and is_late_enough
            control.should_save |= args.save_strategy == SaveStrategy.STEPS
        return control
