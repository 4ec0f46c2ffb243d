"""A run that fits its clock: a few steps are timed, then the number of steps is chosen, before the run that counts
begins and plans its learning rates."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..host.training import run_recipe


TIMED_STEPS = 5  # the first of them warms up and does not count
FEWEST_STEPS = 20  # fewer teach nothing that one could see
SPARE = 0.05  # of the training time, for steps that take longer than those that were timed
LINES_OF_PROGRESS = 12
# While a run trains. With another strategy transformers evaluates after the last step, too, before `do_eval` does.
NO_EVALUATION = {"eval_strategy": "no", "eval_on_start": False}


@dataclass(frozen=True)
class Pace:
    """How fast a machine trains."""

    step: float
    """Seconds of a step."""
    around: float
    """Seconds of a run without its steps: loading, and writing the checkpoint."""


@dataclass(frozen=True)
class StepPlan:
    """How far the run goes."""

    steps: int
    seconds: float
    """What is expected of the whole demo, from its start to its end."""
    deadline: float | None
    """When training ends at the latest (`time.monotonic`), should the machine slow down; None where the fewest steps
    do not fit."""


class StepTimer(TrainerCallback):
    """The seconds that each step took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds.append(time.monotonic() - self._start)


class Progress(TrainerCallback):
    """A line now and then, and the end of training when the time is over."""

    def __init__(self, deadline: float | None, say: Callable[[str], None]) -> None:
        self.deadline = deadline
        self.say = say
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.deadline is not None and time.monotonic() > self.deadline:
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        done, all_steps = state.global_step, state.max_steps
        left = (time.monotonic() - self._start) / done * (all_steps - done)
        width = len(str(all_steps))
        self.say(f"  step {done:{width}} of {all_steps}   loss {float(logs['loss']):6.3f}   {clock(left)} left")


def measure_pace(recipe: Mapping[str, Any]) -> Pace:
    """Run the recipe's first steps for their time alone; what they learn is thrown away."""
    timer, start = StepTimer(), time.monotonic()
    with tempfile.TemporaryDirectory() as thrown_away:
        # logging waits for the device, so that the time of a step is all of it
        changes = {**NO_EVALUATION, "do_eval": False, "logging_steps": 1, "plot_loss": False}
        run_recipe({**recipe, **changes, "output_dir": thrown_away, "max_steps": TIMED_STEPS}, [timer])
    counted = timer.seconds[1:]
    return Pace(step=sum(counted) / len(counted), around=time.monotonic() - start - sum(timer.seconds))


def plan_steps(pace: Pace, most: int, elapsed: float, afterwards: float, minutes: float, now: float) -> StepPlan:
    """As many steps as fit, at most `most` and at least a few.

    `elapsed` seconds are over at the moment `now`; `afterwards` is what evaluation and report will take.
    """
    around = elapsed + pace.around + afterwards
    fitting = int((60 * minutes - around) * (1 - SPARE) / pace.step)
    steps = min(most, max(FEWEST_STEPS, fitting))
    fits = steps <= fitting
    deadline = now - elapsed + 60 * minutes - afterwards if fits else None
    return StepPlan(steps, around + steps * pace.step, deadline)


def planned_settings(plan: StepPlan, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the planned run sets differently from the recipe."""
    return {
        "max_steps": plan.steps,
        "warmup_steps": min(int(recipe.get("warmup_steps", 0)), plan.steps // 10),
        "logging_steps": max(1, plan.steps // LINES_OF_PROGRESS),
        **NO_EVALUATION,
    }


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
