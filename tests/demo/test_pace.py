"""How many steps fit: closed forms of the plan, what is said of it, and the end at the deadline."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.demo import pace
from llamafactory_embed.demo.pace import FEWEST_STEPS, SPARE, Pace, Progress, StepPlan, StepTimer, clock, plan_steps
from llamafactory_embed.demo.run import describe_plan


FAST = Pace(step=0.1, around=10.0)
SLOW = Pace(step=2.0, around=20.0)
ENDLESS = Pace(step=60.0, around=60.0)


def plan(machine: Pace, minutes: float = 5) -> StepPlan:
    return plan_steps(machine, most=300, elapsed=50, afterwards=30, minutes=minutes, now=1000)


def test_a_fast_machine_takes_all_steps() -> None:
    assert plan(FAST) == StepPlan(300, 50 + 10 + 30 + 30.0, deadline=1000 - 50 + 300 - 30)


def test_a_slow_machine_takes_what_fits() -> None:
    planned = plan(SLOW)
    left = 300 - 50 - 20 - 30
    assert planned.steps == int(left * (1 - SPARE) / 2) == 95
    assert planned.seconds == 100 + 95 * 2 <= 300
    assert plan(SLOW, minutes=20).steps == 300


def test_one_that_is_too_slow_takes_the_fewest_and_is_not_stopped() -> None:
    assert plan(ENDLESS) == StepPlan(FEWEST_STEPS, 50 + 60 + 30 + FEWEST_STEPS * 60.0, deadline=None)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (FAST, "A step takes 0.1 s: all 300 steps of the recipe will take 2.0 minutes."),
        (
            SLOW,
            "A step takes 2 s: 95 steps fit into 5 minutes; the recipe's 300 would take 12: `--minutes 13`.",
        ),
        (
            ENDLESS,
            "A step takes 60 s: even 20 steps, the fewest that show something, will take 22 minutes in all instead of "
            "5 (Ctrl-C stops).",
        ),
    ],
)
def test_what_is_said_of_the_plan(machine: Pace, said: str) -> None:
    assert describe_plan(plan(machine), machine, 300, 5) == [said]


def test_the_schedule_is_that_of_the_steps_that_are_run() -> None:
    settings = pace.planned_settings(StepPlan(95, 0, None), {"warmup_steps": 10})
    assert settings == {
        "max_steps": 95, "warmup_steps": 9, "logging_steps": 7, "eval_strategy": "no", "eval_on_start": False,
    }  # fmt: skip
    assert pace.planned_settings(StepPlan(300, 0, None), {"warmup_steps": 10})["warmup_steps"] == 10


def state(step: int, of: int = 10) -> Any:
    return SimpleNamespace(global_step=step, max_steps=of)


def test_training_ends_at_the_deadline_and_not_before() -> None:
    said: list[str] = []
    for deadline, stops in ((time.monotonic() - 1, True), (time.monotonic() + 1e6, False), (None, False)):
        progress, control = Progress(deadline, said.append), SimpleNamespace(should_training_stop=False)
        progress.on_train_begin(None, state(0), control)
        progress.on_step_end(None, state(5), control)
        assert control.should_training_stop is stops
        progress.on_log(None, state(5), control, logs={"loss": 1.5})
        progress.on_log(None, state(5), control, logs={"eval_ndcg@10": 0.5})
    assert len(said) == 3
    assert all(line.startswith("  step  5 of 10   loss  1.500   0:00 left") for line in said)


def test_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose first step takes 8 seconds, whose others take 2, and which needs 5 around them."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])

    def run(recipe: dict[str, Any], callbacks: list[StepTimer]) -> None:
        assert (recipe["max_steps"], recipe["do_eval"], recipe["eval_strategy"]) == (5, False, "no")
        now[0] += 5
        for step in range(recipe["max_steps"]):
            callbacks[0].on_step_begin(None, state(step), None)
            now[0] += 2 if step else 8
            callbacks[0].on_step_end(None, state(step), None)

    monkeypatch.setattr(pace, "run_recipe", run)
    assert pace.measure_pace({"max_steps": 300, "do_eval": True}) == Pace(step=2.0, around=5.0)


def test_the_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.9, 60, 3725)] == ["0:00", "0:59", "1:00", "62:05"]
