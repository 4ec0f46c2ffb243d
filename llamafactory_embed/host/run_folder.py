"""The folder that a run writes into: one run at a time, and training goes on from whole checkpoints only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading.whole_checkpoints import (
    UNFINISHED_NAME,
    find_changed_bytes,
    find_damage,
    newest_whole_checkpoint,
    numbered_checkpoints,
)


if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments


LOCK_NAME = "_run.lock"  # pushes to a hub leave out names that begin with `_`

_held: set[int] = set()


# ------------------------------------------------- one run at a time --------------------------------------------


@contextlib.contextmanager
def alone_in_folder(training_args: TrainingArguments) -> Iterator[None]:
    """Refuse a second run into the same `output_dir`, and remove what an interrupted one had not finished. The first
    process stands for all of a run."""
    if training_args.output_dir is None or training_args.process_index != 0:
        yield
        return
    folder = Path(training_args.output_dir)
    lock = _lock(folder)
    try:
        _remove_unfinished(folder)
        yield
    finally:
        _unlock(folder, lock)


def _lock(folder: Path) -> int | None:
    """Hold the lock of a folder, as an open file. The system releases it when the process ends, however it ends. None
    where the file system knows no locks."""
    path = folder / LOCK_NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"`output_dir: {folder}` cannot be written to ({error.strerror}): name another folder, or make room "
                "or get access there."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            written = os.read(file, 1000)
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"`output_dir: {folder}` is in use by {_describe_holder(written)}: wait for it, or name another "
                    "folder."
                ) from None
            _logger().warning_rank0(f"{folder} cannot be locked ({error.strerror}): start no second run into it.")
            return None
        if _is_file_at(file, path):
            break
        os.close(file)  # whoever held it has removed it since it was opened here
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%F %T")}
    os.truncate(file, 0)
    os.write(file, json.dumps(holder).encode())
    _held.add(file)
    return file


def _is_file_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _describe_holder(written: bytes) -> str:
    try:
        holder = json.loads(written)
        return f"process {holder['process']} on {holder['machine']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another run"


def _unlock(folder: Path, lock: int | None) -> None:
    if lock is not None:
        (folder / LOCK_NAME).unlink(missing_ok=True)
        _held.discard(lock)
        os.close(lock)


def _let_go() -> None:
    """In a child, a worker that reads data for instance: it may outlive a killed run, and must not hold its lock."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


# ----------------------------------------------- whole checkpoints ----------------------------------------------


def _remove_unfinished(folder: Path) -> None:
    unfinished = folder / UNFINISHED_NAME
    names = sorted(path.name for path in unfinished.iterdir()) if unfinished.is_dir() else []
    if names:
        _logger().warning_rank0(f"Removed from {unfinished} what a run left unfinished: {', '.join(names)}.")
    shutil.rmtree(unfinished, ignore_errors=True)


def last_whole_checkpoint(folder: str) -> str | None:
    """In the place of `get_last_checkpoint` where the host looks for a run to go on with."""
    checkpoint, skipped = newest_whole_checkpoint(folder)
    for sentence in skipped:
        _logger().warning_rank0(f"Skipped: {sentence}")
    return None if checkpoint is None else str(checkpoint)


def require_whole_checkpoint(training_args: TrainingArguments) -> None:
    """What `resume_from_checkpoint` names must be whole; `true` is the newest whole one."""
    named = training_args.resume_from_checkpoint
    if not named:
        return
    if named is True or str(named).lower() == "true":
        named = training_args.resume_from_checkpoint = last_whole_checkpoint(training_args.output_dir)
        if named is None:
            raise ValueError(
                "`resume_from_checkpoint: true` finds no whole checkpoint in "
                f"`output_dir: {training_args.output_dir}`: leave it out to begin anew."
            )
    checkpoint = Path(named)
    if not checkpoint.is_dir():
        raise ValueError(f"`resume_from_checkpoint: {checkpoint}` is no folder.")
    damage = find_damage(checkpoint)
    if damage is None and training_args.process_index == 0:
        damage = find_changed_bytes(checkpoint)
    if damage is not None:
        others = [each for each in numbered_checkpoints(checkpoint.parent) if each != checkpoint]
        whole = [each for each in others if find_damage(each) is None]
        advice = f"{whole[-1]} is whole, name that" if whole else "begin anew in another folder"
        raise ValueError(f"`resume_from_checkpoint: {checkpoint}` {damage}: {advice}.")


def _logger() -> Any:
    from llamafactory.extras import logging  # late: it is not needed to parse a command line

    return logging.get_logger()  # the host's, which shows no messages of other loggers
