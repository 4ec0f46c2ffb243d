"""The optimizer of the task weights by its formulas: what each setting does to the logarithms of the weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from llamafactory_embed.hparams.tdro import TdroOptions
from llamafactory_embed.train.embed.tdro.task_weights import TaskWeights, learning_rate


START = [0.5, 0.3, 0.2]
LOGARITHMS = [math.log(weight) for weight in START]
MEASURES = [3.0, 0.5, 0.0]
RATE = 0.1


def logarithms_after(*updates: list[float], **options: Any) -> list[float]:
    """The logarithms of the weights after updates by these measures, neither clipped nor normalized."""
    free = {"tdro_lr": RATE, "tdro_clip": "none", "tdro_normalize_on_update": False}
    weights = TaskWeights(START, TdroOptions(**free, **options))  # type: ignore[arg-type]
    for measures in updates:
        weights.update(torch.tensor(measures), total_updates=len(updates))
    return weights.log_weights.tolist()


def by_formula(step: Any) -> list[float]:
    return [step(logarithm, measure) for logarithm, measure in zip(LOGARITHMS, MEASURES, strict=True)]


def test_weight_decay_draws_the_logarithms_to_zero() -> None:
    """As part of the gradient, and beside it (AdamW, Adafactor), with the step size."""
    decay = 0.4
    sgd = by_formula(lambda logarithm, measure: logarithm + RATE * (measure - decay * logarithm))
    assert logarithms_after(MEASURES, tdro_weight_decay=decay) == pytest.approx(sgd)
    for optimizer in ("adamw", "adafactor"):
        for found, logarithm, measure in zip(
            logarithms_after(MEASURES, tdro_optimizer=optimizer, tdro_weight_decay=decay),
            LOGARITHMS,
            MEASURES,
            strict=True,
        ):
            # The first step of either has the gradient's sign and the size of the rate (rounded by epsilon).
            step = RATE if measure else 0.0
            assert found == pytest.approx((1 - RATE * decay) * logarithm + step, rel=1e-6)


def test_weight_decay_draws_the_weights_together() -> None:
    nothing_to_learn = [[0.0, 0.0, 0.0]] * 50
    after = torch.tensor(logarithms_after(*nothing_to_learn, tdro_weight_decay=1.0)).softmax(0)
    assert float(after.max() - after.min()) < 0.01


def test_adafactor_steps_up_by_the_rate() -> None:
    """Its second update, for one dimension: v = (1 - 2^-0.8) g² + 2^-0.8 g'², step g' / √v, bounded to a mean square
    of 1, so that a task whose measure falls takes a smaller step."""
    first, second = [3.0, 1.0, 2.0], [1.5, 1.0, 0.0]
    share = 2**-0.8
    steps = [new / math.sqrt((1 - share) * old**2 + share * new**2) for old, new in zip(first, second, strict=True)]
    bound = max(1.0, math.sqrt(sum(step**2 for step in steps) / len(steps)))
    expected = [start + RATE + RATE * step / bound for start, step in zip(LOGARITHMS, steps, strict=True)]
    assert logarithms_after(first, second, tdro_optimizer="adafactor") == pytest.approx(expected, rel=1e-6)


def test_betas_of_adamw() -> None:
    """Two updates, with moments and their corrections written out."""
    beta1, beta2, epsilon = 0.6, 0.7, 0.05
    first, second = [3.0, 1.0, 2.0], [1.5, 1.0, 0.0]
    expected = list(LOGARITHMS)
    means, squares = [0.0] * 3, [0.0] * 3
    for number, measures in enumerate((first, second), start=1):
        for task, measure in enumerate(measures):
            means[task] = beta1 * means[task] + (1 - beta1) * measure
            squares[task] = beta2 * squares[task] + (1 - beta2) * measure**2
            mean, square = means[task] / (1 - beta1**number), squares[task] / (1 - beta2**number)
            expected[task] += RATE * mean / (math.sqrt(square) + epsilon)
    settings = {"tdro_beta1": beta1, "tdro_beta2": beta2, "tdro_epsilon": epsilon}
    assert logarithms_after(first, second, tdro_optimizer="adamw", **settings) == pytest.approx(expected)


@pytest.mark.parametrize(("optimizer", "share"), [("rmsprop", 0.01), ("adagrad", 1.0)])
def test_epsilon_of_the_others(optimizer: str, share: float) -> None:
    """After one update the mean (RMSprop, alpha 0.99) or the sum (Adagrad) of squares is a share of g²."""
    epsilon = 0.5
    expected = by_formula(lambda logarithm, g: logarithm + RATE * g / (math.sqrt(share) * g + epsilon))
    assert logarithms_after(MEASURES, tdro_optimizer=optimizer, tdro_epsilon=epsilon) == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
@pytest.mark.parametrize(("ratio", "total", "steps"), [(0.1, 50, 5), (0.1, 51, 6), (1.0, 7, 7)])
def test_a_warm_up_as_a_share_is_one_in_steps(scheduler: Any, ratio: float, total: int, steps: int) -> None:
    by_share = TdroOptions(tdro_scheduler=scheduler, tdro_warmup_ratio=ratio)
    by_steps = TdroOptions(tdro_scheduler=scheduler, tdro_warmup_steps=steps)
    rates = [learning_rate(by_share, update, total) for update in range(total)]
    assert rates == [learning_rate(by_steps, update, total) for update in range(total)]
    assert rates[0] == 0
    assert rates[1] > 0


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_resumed_optimizer_goes_on(optimizer: Any) -> None:
    options = TdroOptions(tdro_optimizer=optimizer, tdro_weight_decay=0.1)
    updates = [torch.tensor(values) for values in ([3.0, 1.0, 2.0], [1.5, 1.0, 0.0], [0.2, 2.0, 1.0])]
    whole = TaskWeights(START, options)
    for measures in updates[:2]:
        whole.update(measures, total_updates=3)
    resumed = TaskWeights(START, options)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for weights in (whole, resumed):
        weights.update(updates[2], total_updates=3)
    assert torch.equal(resumed.current, whole.current)
