"""One run at a time writes into a folder, and none goes on from a half checkpoint."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafactory_embed.host.run_folder import (
    LOCK_NAME,
    alone_in_folder,
    last_whole_checkpoint,
    require_whole_checkpoint,
)
from llamafactory_embed.loading.whole_checkpoints import UNFINISHED_NAME
from tests.loading.test_whole_checkpoints import remove, write_checkpoint


def arguments(folder: Path, rank: int = 0, resume: Any = None) -> Any:
    return SimpleNamespace(output_dir=str(folder), process_index=rank, resume_from_checkpoint=resume)


def in_another_process(work: Callable[[], object]) -> int:
    """Start it, wait until it says so, and return its number."""
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        kept = work()  # until the end
        os.write(says, b".")
        signal.pause()
        del kept
    os.read(said, 1)
    return child


@pytest.fixture
def held(tmp_path: Path) -> int:
    """A process that writes into the folder."""

    def begin() -> object:
        folder = alone_in_folder(arguments(tmp_path))
        folder.__enter__()
        return folder

    return in_another_process(begin)


def test_a_second_run_is_refused_until_the_first_is_killed(held: int, tmp_path: Path) -> None:
    try:
        sentence = rf"is in use by process {held} on .* since .*name another folder\."
        with pytest.raises(ValueError, match=sentence), alone_in_folder(arguments(tmp_path)):
            pass
        with alone_in_folder(arguments(tmp_path, rank=1)):
            pass  # the first process stands for all
    finally:
        os.kill(held, signal.SIGKILL)
        os.waitpid(held, 0)
    assert (tmp_path / LOCK_NAME).exists()
    with alone_in_folder(arguments(tmp_path)):
        pass
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_worker_that_outlives_its_run_holds_nothing(tmp_path: Path) -> None:
    with alone_in_folder(arguments(tmp_path)):
        worker = in_another_process(lambda: None)
    try:
        with alone_in_folder(arguments(tmp_path)):
            pass
        # The worker must have closed the file itself: a killed run unlocks nothing.
        opened = [os.readlink(each) for each in Path(f"/proc/{worker}/fd").iterdir()]
        assert not any(LOCK_NAME in path for path in opened)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_what_was_unfinished_is_removed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path / UNFINISHED_NAME / "checkpoint-3")
    with alone_in_folder(arguments(tmp_path)):
        assert not (tmp_path / UNFINISHED_NAME).exists()
    assert "left unfinished: checkpoint-3" in caplog.text


def test_a_half_checkpoint_is_skipped_or_refused(tmp_path: Path) -> None:
    first, last = (write_checkpoint(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    remove("trainer_state.json")(last)
    assert last_whole_checkpoint(str(tmp_path)) == str(first)
    newest = arguments(tmp_path, resume=True)
    require_whole_checkpoint(newest)
    assert newest.resume_from_checkpoint == str(first)
    with pytest.raises(
        ValueError, match=f"checkpoint-2` has no trainer_state.json.*: {re.escape(str(first))} is whole"
    ):
        require_whole_checkpoint(arguments(tmp_path, resume=str(last)))
    with pytest.raises(ValueError, match="is no folder"):
        require_whole_checkpoint(arguments(tmp_path, resume=str(tmp_path / "checkpoint-7")))
    remove("model.safetensors")(first)
    with pytest.raises(ValueError, match="finds no whole checkpoint"):
        require_whole_checkpoint(arguments(tmp_path, resume=True))
