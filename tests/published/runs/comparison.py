"""Two implementations of a run are the same run: every step's loss, learning rate and gradient, and where it ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .recording import STEPS, Recording
from .reference import Result


TOLERANCE = 1e-5
"""Of losses and weights, relative. Both compute in float32, one packed, the other padded, for 20 steps."""

LOSS_ROUNDING = 5e-6
"""Of losses, absolute: a contrastive loss is the difference of two numbers near its scale (20 or 50), of which float32
keeps 2e-6 to 4e-6, however small the difference is. Processors round differently."""

NORM_TOLERANCE = 1e-4
"""Of gradients' norms."""

MOVEMENT_TOLERANCE = 1e-3
"""Of a tensor's way from its start to its end, which schedule, decay and averaging decide. Rounding counts more in it
than in the weights: elements whose gradients are near zero are divided by that size in AdamW, and processors round
differently (2.2e-4 were seen). A schedule that is off by one of its 60 steps is off by 1.7e-2."""


def assert_same_run(
    recording: Recording,
    result: Result,
    learned: dict[str, Tensor],
    without_effect: Callable[[str, Tensor], Tensor] = lambda _, value: value,
) -> None:
    """Compare a recorded run with the second implementation's. `without_effect` takes a parameter's name and value and
    drops what no loss depends on: its gradient is rounding."""
    assert len(result.losses) == STEPS
    np.testing.assert_allclose(recording.learning_rates, result.learning_rates, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(recording.losses, result.losses, rtol=TOLERANCE, atol=LOSS_ROUNDING)
    np.testing.assert_allclose(recording.gradient_norms, result.gradient_norms, rtol=NORM_TOLERANCE)
    assert recording.end.keys() == learned.keys()
    for name in recording.end:
        found, expected, start = (
            without_effect(name, values[name].detach()) for values in (recording.end, learned, recording.start)
        )
        difference, way = float((found - expected).norm()), float((expected - start).norm())
        assert difference <= TOLERANCE * float(expected.norm()) + 1e-9, f"{name}: {difference} of {expected.norm()}"
        assert difference <= MOVEMENT_TOLERANCE * way, f"{name}: {difference} of a way of {way}"
    assert max(float((learned[name].detach() - start).norm()) for name, start in recording.start.items()) > 0
    assert len(set(recording.losses)) == STEPS  # each step differs, so their order was compared as well
