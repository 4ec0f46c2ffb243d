"""Two implementations of a run are the same run: every step's loss, learning rate and gradient, and where it ends."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .recording import STEPS, Recording
from .reference import Result


TOLERANCE = 1e-4
"""Relative. Both compute in float32, one packed, the other padded, for 20 steps."""

MOVEMENT_TOLERANCE = 2e-3
"""Of a tensor's way from its start to its end. A mistake in schedule, decay or averaging moves it by per cents; rounding
moves single elements whose gradients are near zero, which AdamW divides by their own size."""


def assert_same_run(
    recording: Recording, result: Result, learned: dict[str, Tensor], tolerance: float = TOLERANCE
) -> None:
    """Compare a recorded run with the second implementation's."""
    assert len(result.losses) == STEPS
    np.testing.assert_allclose(recording.learning_rates, result.learning_rates, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(recording.losses, result.losses, rtol=tolerance)
    np.testing.assert_allclose(recording.gradient_norms, result.gradient_norms, rtol=10 * tolerance)
    assert recording.end.keys() == learned.keys()
    for name, found in recording.end.items():
        expected, start = learned[name].detach(), recording.start[name]
        difference, way = float((found - expected).norm()), float((expected - start).norm())
        assert difference <= tolerance * float(expected.norm()) + 1e-9, f"{name}: {difference} of {expected.norm()}"
        assert difference <= MOVEMENT_TOLERANCE * way, f"{name}: {difference} of a way of {way}"
    assert max(float((learned[name].detach() - start).norm()) for name, start in recording.start.items()) > 0
    assert len(set(recording.losses)) == STEPS  # each step differs, so their order was compared as well
