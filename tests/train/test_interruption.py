"""Runs that a signal, a loss that is no number, or changed data end: what is kept, and how they go on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from llamafactory_embed.host.same_data import PIECE, PIECES, digest_of
from llamafactory_embed.train.interruption import SaveAtSignal, signals_of
from tests.e2e.contrastive_runs import Recorder, RunResult, recipe, write_data


pytestmark = pytest.mark.usefixtures("single_process")

STEPS = 4
OPTIONS = {"max_steps": STEPS, "batch_size": 4, "optim": "adamw_torch", "lr_scheduler_type": "cosine"}

Train = Callable[..., RunResult]


class At(TrainerCallback):
    """Does something in a step, before the optimizer."""

    def __init__(self, step: int, act: Callable[[Any], object]) -> None:
        self.step = step
        self.act = act

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 >= self.step:
            self.act(kwargs["model"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def train(tiny_llama: Path, data: Path, tmp_path: Path) -> Train:
    def run(name: str, *callbacks: TrainerCallback, **options: Any) -> RunResult:
        from llamafactory.train.tuner import run_exp

        recorder = Recorder()
        run_exp(recipe(tiny_llama, data, tmp_path / name, **OPTIONS, **options), callbacks=[*callbacks, recorder])
        return recorder.result

    return run


def poison(model: Any) -> None:
    """A gradient that is no number."""
    next(each for each in model.parameters() if each.grad is not None).grad.view(-1)[3] = float("nan")


def assert_same(first: RunResult, second: RunResult) -> None:
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], value, err_msg=name)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("*checkpoint*"))


def test_a_run_that_a_signal_stopped_goes_on_as_if_nothing_had_been(train: Train, data: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        train("run", At(2, lambda model: os.kill(os.getpid(), signal.SIGUSR1)), preemption_signal="SIGUSR1")
    assert ended.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == handler
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert not (tmp_path / "run" / "model.safetensors").exists()

    file = data / "nouns.jsonl"
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace("a", "e"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data have changed since \(nouns: nouns\.jsonl is different\)"):
        train("run")
    shutil.copytree(tmp_path / "run", tmp_path / "changed")
    train("changed", ignore_changed_data=True)
    file.write_text(before, encoding="utf-8")
    assert_same(train("whole"), train("run"))


def test_the_second_signal_ends_at_once() -> None:
    child = os.fork()
    if child == 0:
        SaveAtSignal(signals_of(None)).on_train_begin(None, None, None)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_a_bad_gradient_stops_the_run_with_the_state_before(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"step 3 .*not a number \(.*(nouns|words) row \d+.*checkpoint-2 is the state"
    ):
        train("run", At(3, poison))
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert_same(train("whole"), train("run"))


def test_bad_steps_are_skipped_up_to_a_limit(train: Train, tmp_path: Path) -> None:
    seen: list[list[np.ndarray]] = []
    keep = At(1, lambda model: seen.append([each.detach().numpy().copy() for each in model.parameters()]))
    with pytest.raises(ValueError, match=r"step 4 .*larger `bad_loss_limit`"):
        train("run", keep, At(2, poison), bad_loss="skip", bad_loss_limit=2)
    first, second, third, fourth = seen
    assert any((one != two).any() for one, two in zip(first, second, strict=True))
    for after in (third, fourth):
        for one, two in zip(second, after, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_large_file_is_known_by_its_length_and_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(PIECE * (PIECES + 3))
    before = digest_of(path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    changed = digest_of(path)
    with path.open("ab") as file:
        file.write(b"x")
    assert len({before, changed, digest_of(path)}) == 3
