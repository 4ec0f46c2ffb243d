"""Signals that end a run: at the first with a checkpoint after the step, at the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveAtSignal(TrainerCallback):
    """Ends training after the step in which a signal came to any rank, with a checkpoint."""

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self.signals = signals
        self.received: int | None = None
        """The signal that ends the run, in this or another rank."""
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # Python takes signals there only
            self._before = {each: signal.signal(each, self._receive) for each in self.signals}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.received = largest_of_ranks(self.received or 0, args.device) or None
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def exit_if_received(self, state: TrainerState) -> None:
        """End the process as the signal would have, with its exit code, when the checkpoint is there."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            print(f"{name}: stopped after step {state.global_step}, with a checkpoint.", file=sys.stderr)
            sys.exit(128 + self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # Ctrl-C reaches workers that read data, too, and the step needs them
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        # `print` is not allowed in the middle of another one.
        os.write(2, b"\nStopping after this step, with a checkpoint; once more: at once, without.\n")


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest of the values that the ranks bring; they decide alike, or some would wait for ever."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared)


def signals_of(preemption_signal: str | None) -> list[signal.Signals]:
    """Those that end a run with a checkpoint."""
    more = [signal.Signals[preemption_signal]] if preemption_signal is not None else []
    return [signal.SIGTERM, signal.SIGINT, *more]
