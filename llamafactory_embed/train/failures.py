"""What ends a training from outside, in a sentence: memory that runs out, a process that was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ..loading.whole_checkpoints import newest_whole_checkpoint


if TYPE_CHECKING:
    from .trainer import WrappedModelTrainer


# Words of libraries that raise a bare RuntimeError: torch on a CPU, its data loader, gloo.
NO_MEMORY = ("can't allocate memory", "not enough memory")
NO_WORKER = "DataLoader worker (pid"
NO_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


@contextlib.contextmanager
def failures_in_a_sentence(trainer: WrappedModelTrainer) -> Iterator[None]:
    """Say what happened, what to change, and where the run goes on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        sentence = explain_failure(trainer, error)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a tensor found no room, on an accelerator or beside it."""
    is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_named or any(words in str(error) for words in NO_MEMORY)


def first_line(error: BaseException) -> str:
    """What an error says, without what it says below."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def explain_failure(trainer: WrappedModelTrainer, error: BaseException) -> str | None:
    """The sentence; None for an error that is none of these."""
    step = trainer.state.global_step + 1
    if is_out_of_memory(error):
        return f"Memory ran out in step {step} ({first_line(error)}): {trainer.memory_advice()}. {_rest(trainer)}"
    if NO_WORKER in str(error):
        return (
            f"A process that reads data ended in step {step} ({first_line(error)}), killed by somebody or because the "
            f"machine had no memory left: `dataloader_num_workers: {trainer.args.dataloader_num_workers}` may be too "
            f"many. {_rest(trainer)}"
        )
    if isinstance(error, dist.DistError) or any(words in str(error) for words in NO_PEER):
        return (
            f"Another process of this run ended, and took this one along in step {step} ({first_line(error)}): its "
            f"own last words say why; if it has none, it was killed. {_rest(trainer)}"
        )
    return None


def _rest(trainer: WrappedModelTrainer) -> str:
    checkpoint, _ = newest_whole_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is None:
        return "There is no checkpoint of this run yet."
    return f"{checkpoint} is whole, and the same recipe goes on from there."
