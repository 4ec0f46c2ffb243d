"""Runs that a signal, a loss that is no number, or changed data end: what is kept, and how they go on."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from llamafactory_embed.host.same_data import PIECE, PIECES, digest_of, require_same_data
from llamafactory_embed.loading.whole_checkpoints import CONTENTS_NAME, UNFINISHED_NAME, write_contents
from llamafactory_embed.train.bad_steps import has_bad_gradient
from llamafactory_embed.train.interruption import SaveAtSignal, signals_of
from llamafactory_embed.train.saving import WholeCheckpointTrainer
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def whole(train: Train, results: dict[str, RunResult]) -> RunResult:
    """The run that nothing interrupts, once."""
    if not results:
        results["whole"] = train("whole")
    return results["whole"]


@pytest.fixture(scope="module")
def results() -> dict[str, RunResult]:
    return {}


@pytest.fixture
def train(tiny_llama: Path, data: Path, tmp_path: Path) -> Train:
    def run(name: str, *callbacks: TrainerCallback, **options: Any) -> RunResult:
        from llamafactory.train.tuner import run_exp

        recorder = Recorder()
        run_exp(recipe(tiny_llama, data, tmp_path / name, **OPTIONS | options), callbacks=[*callbacks, recorder])
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


def test_a_run_that_a_signal_stopped_goes_on_as_if_nothing_had_been(
    train: Train, whole: RunResult, data: Path, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        train("run", At(2, lambda model: os.kill(os.getpid(), signal.SIGUSR1)), preemption_signal="SIGUSR1")
    assert ended.value.code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == handler
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert not (tmp_path / "run" / "model.safetensors").exists()

    file = data / "nouns.jsonl"
    before = file.read_text(encoding="utf-8")
    file.write_text(f"{before}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"data have changed since \(nouns: nouns\.jsonl is different\)"):
        train("run")
    file.write_text(before, encoding="utf-8")
    assert_same(whole, train("run"))


def test_changed_data_are_named_and_can_be_ignored(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    write_contents(checkpoint, data={"a: a.jsonl": "1", "b: b.jsonl": "2"})
    training_args: Any = SimpleNamespace(resume_from_checkpoint=str(checkpoint))

    def arguments(digests: dict[str, str], ignore: bool = False) -> Any:
        return SimpleNamespace(data_digests=digests, stage_options=SimpleNamespace(ignore_changed_data=ignore))

    changed = {"a: a.jsonl": "3", "c: c.jsonl": "2"}
    with pytest.raises(ValueError, match=r"a\.jsonl is different, b: b\.jsonl is gone, c: c\.jsonl is new"):
        require_same_data(arguments(changed), training_args)
    require_same_data(arguments(changed, ignore=True), training_args)
    require_same_data(arguments({"a: a.jsonl": "1", "b: b.jsonl": "2"}), training_args)
    (checkpoint / CONTENTS_NAME).unlink()  # as the host leaves it
    require_same_data(arguments(changed), training_args)


def test_the_second_signal_ends_at_once() -> None:
    child = os.fork()
    if child == 0:
        SaveAtSignal(signals_of(None)).on_train_begin(None, None, None)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_a_killed_process_that_reads_data_is_named(train: Train, whole: RunResult, tmp_path: Path) -> None:
    def kill(model: Any) -> None:
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # torch wants to see it dead itself

    options = {"dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 1}
    sentence = (
        r"reads data ended in step 2 \(.*killed by signal.*workers: 1` may be too many\. .*checkpoint-1 is whole"
    )
    with pytest.raises(ValueError, match=sentence):
        train("run", At(2, kill), **options)
    assert_same(whole, train("run", **options))


def test_a_bad_gradient_stops_the_run_with_the_state_before(train: Train, whole: RunResult, tmp_path: Path) -> None:
    sentence = r"step 3 .*not a number \(.*(nouns|words) row \d+.*checkpoint-2 is the state"
    with pytest.raises(ValueError, match=sentence):
        train("run", At(3, poison))
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert_same(whole, train("run"))


@pytest.mark.parametrize(
    ("value", "dtype", "bad"),
    [
        (1.0, torch.float32, False),
        (math.nan, torch.float32, True),
        (math.inf, torch.bfloat16, True),
        (-math.inf, torch.float32, True),
        (1e30, torch.float32, False),  # the sum of its squares is infinity
        (1e30, torch.bfloat16, False),
    ],
)
def test_a_gradient_is_bad_where_a_number_is_none(value: float, dtype: torch.dtype, bad: bool) -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2, dtype=dtype), nn.Linear(1, 1)])  # the last has no gradient
    assert not has_bad_gradient(model)
    for parameter in [*model[0].parameters(), *model[1].parameters()]:
        parameter.grad = torch.ones_like(parameter)
    model[1].weight.grad[1, 0] = value
    assert has_bad_gradient(model) is bad


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


def test_a_full_disk_is_named_and_gets_its_room_back(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state = WholeCheckpointTrainer._save_scaler

    def fail_at_the_second(trainer: Any, folder: str) -> None:
        if trainer.state.global_step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_state(trainer, folder)

    monkeypatch.setattr(WholeCheckpointTrainer, "_save_scaler", fail_at_the_second)
    sentence = r"checkpoint-2 could not be written \(.*No space left.* free there\): .*checkpoint-1 is whole"
    with pytest.raises(ValueError, match=sentence):
        train("run", save_strategy="steps", save_steps=1)
    assert checkpoints(tmp_path / "run") == ["checkpoint-1"]
    assert not (tmp_path / "run" / UNFINISHED_NAME).exists()


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
