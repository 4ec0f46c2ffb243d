"""Disks on which a checkpoint cannot be written: one sentence, and what was whole still is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llamafactory.train.pt.trainer import CustomTrainer

from llamafactory_embed import cli, files
from llamafactory_embed.host.run_folder import alone_in_folder
from llamafactory_embed.loading.whole_checkpoints import UNFINISHED_NAME, find_damage
from llamafactory_embed.train.saving import WholeCheckpointTrainer
from tests.loading.test_whole_checkpoints import write_checkpoint


Write = Callable[[Path], object]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Write], None]:
    """Write `checkpoint-2` of a run that has a whole `checkpoint-1`, in the way of the trainer."""
    write_checkpoint(tmp_path / "run" / "checkpoint-1")
    trainer: Any = object.__new__(WholeCheckpointTrainer)
    trainer.hp_search_backend = None
    trainer.accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    trainer.state = SimpleNamespace(global_step=2, best_global_step=None, best_model_checkpoint=None)
    trainer.args = SimpleNamespace(
        output_dir=str(tmp_path / "run"), should_save=True, push_to_hub=False, process_index=0, local_process_index=0,
        save_total_limit=None,
    )  # fmt: skip

    def run(write: Write) -> None:
        monkeypatch.setattr(
            CustomTrainer,
            "_save_checkpoint",
            lambda self, model, trial: write(Path(self._get_output_dir(trial), "checkpoint-2")),
            raising=False,
        )
        trainer._save_checkpoint(None, None)

    return run


def refuse(number: int) -> Write:
    def write(folder: Path) -> None:
        write_checkpoint(folder)
        raise OSError(number, os.strerror(number), str(folder / "optimizer.pt"))

    return write


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_refuses_is_named(number: int, save: Callable[[Write], None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint-2 could not be written \(.*{os.strerror(number)}.*-1 is whole"):
        save(refuse(number))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-1"]


def test_a_folder_that_vanishes_is_named(save: Callable[[Write], None], tmp_path: Path) -> None:
    def vanish(folder: Path) -> None:
        shutil.rmtree(tmp_path / "run")
        write_checkpoint(folder)
        shutil.rmtree(tmp_path / "run")
        (folder / "scheduler.pt").write_bytes(b"")

    with pytest.raises(ValueError, match=r"checkpoint-2 could not be written: .*run is gone \(.*No such file"):
        save(vanish)


def test_a_disk_that_cannot_swap_names_replaces_a_checkpoint(
    save: Callable[[Write], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    old = write_checkpoint(tmp_path / "run" / "checkpoint-2")
    (old / "old").touch()
    save(write_checkpoint)
    assert not (old / "old").exists()
    assert find_damage(old) is None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_disk_that_cannot_rename_folders_keeps_the_old_checkpoint(
    save: Callable[[Write], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_folders(*paths: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    old = write_checkpoint(tmp_path / "run" / "checkpoint-2")
    (old / "old").touch()
    monkeypatch.setattr(os, "rename", refuse_folders)
    with pytest.raises(ValueError, match=r"could not be written \(.*Invalid cross-device link.*checkpoint-2 is whole"):
        save(write_checkpoint)
    assert (old / "old").exists()
    assert not (tmp_path / "run" / UNFINISHED_NAME).exists()


@pytest.mark.parametrize("place", ["mkdir", "open"])
def test_a_run_does_not_begin_in_a_folder_that_cannot_be_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_all(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(*((Path, "mkdir") if place == "mkdir" else (os, "open")), refuse_all)
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path / "run"), process_index=0)
    with (
        pytest.raises(ValueError, match=r"`output_dir: .*run` cannot be written to \(Read-only file system\): name"),
        alone_in_folder(arguments),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_commands_say_what_a_disk_refuses(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        raise OSError(number, os.strerror(number), "/out/file")

    monkeypatch.setattr("llamafactory_embed.materials.command.run", run)
    assert cli.main(["init", "there"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"llamafactory-embed: /out/file could not be read or written ({os.strerror(number)}): make")
    assert said.count("\n") == 1


@pytest.mark.parametrize("left", [None, "", '{"train_loss"', "[]", '{"eval_loss": 2.0}'])
def test_metrics_do_not_depend_on_half_a_file(left: str | None, tmp_path: Path) -> None:
    trainer: Any = object.__new__(WholeCheckpointTrainer)
    trainer.args = SimpleNamespace(output_dir=str(tmp_path))
    trainer.is_world_process_zero = lambda: True
    if left is not None:
        (tmp_path / "all_results.json").write_text(left)
    trainer.save_metrics("train", {"train_loss": 1.0})
    kept = {"eval_loss": 2.0} if left is not None and "eval_loss" in left else {}
    assert json.loads((tmp_path / "all_results.json").read_text()) == kept | {"train_loss": 1.0}
    assert json.loads((tmp_path / "train_results.json").read_text()) == {"train_loss": 1.0}


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cpu:1"])
def test_an_optimizer_is_loaded_to_a_ranks_cpu(device: str, tmp_path: Path) -> None:
    """As the Trainer does on several ranks."""
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", map_location=torch.device(device), weights_only=True)
    torch.testing.assert_close(loaded, optimizer.state_dict(), rtol=0, atol=0)


def test_a_command_shows_a_traceback_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there may be a mistake of the program."""

    def run(arguments: object) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/out/file")

    monkeypatch.setattr("llamafactory_embed.materials.command.run", run)
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    assert cli.main(["init", "there"]) == 1
    *traceback, sentence = capsys.readouterr().err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert any("test_saving.py" in line for line in traceback)
    assert sentence.startswith(
        "llamafactory-embed: /out/file could not be read or written (No such file or directory)"
    )
