"""Task weights help where they must: scripts/tdro_constructed.py, five seeds."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.two_ranks import REPOSITORY


SEEDS = range(5)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import tdro_constructed

    return tdro_constructed


@pytest.mark.parametrize("measure", ["ratio", "difference"])
def test_weights_move_to_what_is_left_to_learn_and_help(measure: str, script: ModuleType) -> None:
    """The two tasks that the reference knows least get the most weight; with it the worst task and the mean gain, from
    every seed."""
    case = script.CASES["noisy"]
    for seed in SEEDS:
        outcome = script.three_stages(case, measure, seed)
        least_known = outcome.left_to_learn.topk(2).indices.tolist()
        assert sorted(outcome.weights.topk(2).indices.tolist()) == sorted(least_known)
        assert min(outcome.gains(case)) > 0.02, (seed, outcome.gains(case))


def test_what_nobody_can_learn_gets_no_weight_by_the_reference(script: ModuleType) -> None:
    """A task of noise alone: the reference, which has not learned it either, tells it from what is left to learn. The
    loss alone (group DRO) gives it most of the weight, and the other tasks lose."""
    case = script.CASES["unlearnable"]
    by_ratio, by_loss = (script.three_stages(case, measure, seed=0) for measure in ("ratio", "loss"))
    assert int(by_ratio.weights.argmin()) == 6
    assert min(by_ratio.gains(case)) > 0
    assert int(by_loss.weights.argmax()) == 6
    assert max(by_loss.gains(case)) < 0
