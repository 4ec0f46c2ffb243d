"""Measures and weights of tasks whose losses are as extreme as they come: never NaN, and no update is lost."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch

from llamafactory_embed.hparams.tdro import TaskMeasure, TdroOptions
from llamafactory_embed.train.embed.tdro.measure import MeasureAccumulator, robust_loss
from llamafactory_embed.train.embed.tdro.task_weights import TaskWeights


MEASURES = get_args(TaskMeasure)
CLIPS = ("norm", "value", "none")
EXTREMES = (0.0, 1e-30, 0.3, 1e30)
TASKS = torch.tensor([0, 1, 1, 2])


def weights_after(
    measure: TaskMeasure, losses: list[float], reference: list[float], updates: int = 1, **options: object
) -> TaskWeights:
    """The weights of three tasks with 1, 2 and 1 queries after updates from the same losses."""
    settings = TdroOptions(tdro_measure=measure, **options)  # type: ignore[arg-type]
    weights = TaskWeights([1 / 3] * 3, settings)
    accumulator = MeasureAccumulator(3, measure, settings.tdro_norm)
    for _ in range(updates):
        accumulator.add(torch.tensor(losses), torch.tensor(reference), TASKS)
        weights.update(accumulator.finish().measures, total_updates=updates)
    return weights


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop", "adagrad", "adafactor"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("measure", MEASURES)
def test_weights_are_never_nan(measure: TaskMeasure, clip: str, optimizer: str) -> None:
    settings = {"tdro_clip": clip, "tdro_optimizer": optimizer}
    for loss, reference in itertools.product(EXTREMES, repeat=2):
        for losses, references in (
            ([loss] * 4, [reference] * 4),
            ([loss, 0.7, 0.9, 0.3], [reference, 0.4, 0.5, 0.2]),
            ([0.5, 0.7, 0.9, 0.3], [reference, 0.4, reference, 0.2]),
        ):
            for norm in (0.0, 1.0, 2.0):
                weights = weights_after(measure, losses, references, updates=3, tdro_norm=norm, **settings)
                for values in (weights.current, weights.mean, weights.moving_average):
                    assert values.isfinite().all(), (losses, references, norm)
                    assert float(values.sum()) == pytest.approx(1)
                for tasks in (TASKS, torch.tensor([0]), torch.tensor([1, 2])):
                    loss_of_tasks = robust_loss(torch.full(tasks.shape, 0.5), tasks, weights.current.float())
                    assert math.isfinite(float(loss_of_tasks)), (losses, references, norm)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("measure", ["ratio", "paper_ratio", "relative_difference"])
def test_a_reference_without_loss_does_not_take_the_update_from_others(measure: TaskMeasure, clip: str) -> None:
    """The task that the reference has learned completely is compared with a loss of 1; the others move as much as if
    the reference's loss had been that. (A norm of 0 leaves the losses as they are.)"""
    losses = [0.5, 0.9, 1.1, 0.3]
    options = {"tdro_norm": 0.0, "tdro_clip": clip}
    without = weights_after(measure, losses, [0.0, 0.4, 0.5, 0.2], **options)
    with_one = weights_after(measure, losses, [1.0, 0.4, 0.5, 0.2], **options)
    if measure == "relative_difference":
        assert float(without.current[0]) > float(with_one.current[0])  # the difference itself is another
        assert float(without.current[1]) != pytest.approx(1 / 3, abs=1e-4)
    else:
        torch.testing.assert_close(without.current, with_one.current)
        assert float(without.current[1]) > float(without.current[0]) + 1e-4


@pytest.mark.parametrize("measure", ["ratio", "paper_ratio"])
def test_a_reference_without_any_loss_leaves_the_losses_themselves(measure: TaskMeasure) -> None:
    losses = [0.5, 0.9, 1.1, 0.3]
    torch.testing.assert_close(
        weights_after(measure, losses, [0.0] * 4).current, weights_after("loss", losses, [0.0] * 4).current
    )


def test_a_batch_of_tasks_without_weight_has_no_loss() -> None:
    losses = torch.tensor([0.5, 0.7], requires_grad=True)
    loss = robust_loss(losses, torch.tensor([1, 2]), torch.tensor([1.0, 0.0, 0.0]))
    (gradient,) = torch.autograd.grad(loss, losses)
    assert loss.item() == 0
    assert gradient.tolist() == [0, 0]
