"""Checkpoints that are whole or absent: `checkpoint-N` gets its name when every rank has written its part."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from llamafactory.train.pt.trainer import CustomTrainer
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import put_in_place, sync, write_text
from ..loading.whole_checkpoints import (
    UNFINISHED_NAME,
    newest_whole_checkpoint,
    numbered_checkpoints,
    step_of,
    write_contents,
)


def _restore_on_numbered_cpu(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """Several ranks on CPUs have the device `cpu:0`, to which the Trainer loads the optimizer of a checkpoint; torch
    knows the name `cpu` only."""
    return storage if re.fullmatch(r"cpu:\d+", location) else None


torch.serialization.register_package(11, lambda storage: None, _restore_on_numbered_cpu)  # it names no storage itself


class WholeCheckpointTrainer(CustomTrainer):
    """The host's trainer, which writes a checkpoint into a folder beside and lets it take its place at the end."""

    data_digests: Mapping[str, str] = {}
    """What the files of the data were; a checkpoint remembers it."""

    _is_writing = False

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED_NAME) if self._is_writing else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished, finished = run / UNFINISHED_NAME / name, run / name
        try:
            with self._writing():
                super()._save_checkpoint(model, trial)
            self._keep_best(unfinished, finished)
            self._finish(unfinished, finished)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(self._describe_failure(finished, error)) from error
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(finished))
        if self.args.should_save:
            self._remove_old_checkpoints(run, finished)

    def _keep_best(self, unfinished: Path, finished: Path) -> None:
        """The state names the best checkpoint by the name that it will have."""
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(finished)
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))

    def _describe_failure(self, checkpoint: Path, error: Exception) -> str:
        """A sentence; what was written so far gives its room back."""
        run = checkpoint.parent
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED_NAME, ignore_errors=True)
        reason = str(error).strip().partition("\n")[0]
        if not run.is_dir():
            return f"{checkpoint} could not be written: {run} is gone ({reason})."
        room = f"{shutil.disk_usage(run).free / 1e9:.1f} GB are free there"
        whole, _ = newest_whole_checkpoint(run)
        rest = (
            "there is none before it" if whole is None else f"{whole} is whole, and the same recipe goes on from there"
        )
        return f"{checkpoint} could not be written ({reason}; {room}): {rest}."

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model of the run itself is written beside, too; then each of its files takes its place."""
        run = Path(output_dir or self.args.output_dir)
        if self._is_writing or run != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            return
        unfinished = run / UNFINISHED_NAME / "model"
        try:
            super().save_model(str(unfinished), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and unfinished.is_dir():
                self._put_model_in_place(unfinished, run)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(self._describe_failure(run / "the model of the run", error)) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write the host's two files of metrics whole. Of one that was left half, the host would read no line."""
        if not self.is_world_process_zero():
            return
        run = Path(self.args.output_dir)
        of_all = run / "all_results.json"
        files = {run / f"{split}_results.json": metrics}
        if combined:
            files[of_all] = _metrics_in(of_all) | metrics
        for path, values in files.items():
            write_text(path, json.dumps(values, indent=4, sort_keys=True))

    @staticmethod
    def _put_model_in_place(unfinished: Path, run: Path) -> None:
        for path in sorted(unfinished.iterdir(), key=lambda each: each.stat().st_mtime_ns):
            if path.is_dir():
                put_in_place(path, run / path.name)
            else:
                sync(path)
                os.replace(path, run / path.name)
        shutil.rmtree(unfinished.parent, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_writing:  # it is pushed from the place where it stays
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish(self, unfinished: Path, finished: Path) -> None:
        """Give a checkpoint its name: on the first machine, then on others that have a disk of their own."""
        is_first = self.args.process_index == 0
        for is_mine in (is_first, not is_first and self.args.local_process_index == 0):
            self.accelerator.wait_for_everyone()
            if is_mine and unfinished.is_dir():
                write_contents(unfinished, data=dict(self.data_digests))
                put_in_place(unfinished, finished)
                with contextlib.suppress(OSError):  # another machine has removed it, or still writes into it
                    unfinished.parent.rmdir()
        self.accelerator.wait_for_everyone()

    def _remove_old_checkpoints(self, run: Path, newest: Path) -> None:
        """Keep `save_total_limit` checkpoints, the best and the newest among them. A run that went on from an earlier
        one may have left some with higher numbers: the time counts. What is half removed has lost its name."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        best = self.state.best_model_checkpoint
        protected = {newest, *([Path(best)] if best is not None else [])}
        checkpoints = sorted(numbered_checkpoints(run), key=lambda each: (each.stat().st_mtime, step_of(each)))
        removable = [each for each in checkpoints if each not in protected]
        surplus = len(checkpoints) - max(limit, len(protected))
        for checkpoint in removable[: max(surplus, 0)]:
            removed = run / UNFINISHED_NAME / checkpoint.name
            removed.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another machine has removed it
                os.rename(checkpoint, removed)
            shutil.rmtree(removed.parent, ignore_errors=True)


def _metrics_in(file: Path) -> dict[str, Any]:
    """Those of earlier runs; none where there is no such file, or half of one."""
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}
