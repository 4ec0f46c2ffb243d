"""`auto_token_budget`: a step whose memory runs out runs again in smaller forwards, with the same rows and random
numbers."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .embed.grad_cache import RandomState
from .failures import first_line, is_out_of_memory
from .interruption import largest_of_ranks


if TYPE_CHECKING:
    from .trainer import WrappedModelTrainer


logger = logging.getLogger(__name__)


class MemoryRanOutError(Exception):
    """In this part of a step, on this rank or on another: all of them raise it at the same place."""


class TokenBudget:
    """The most tokens of one forward of a training.

    A step runs forward by forward, each with a backward of its own. Ranks exchange nothing in a part of it that may
    run out of memory; behind each they agree, and they average the gradients when all of them have theirs.
    """

    def __init__(self, trainer: WrappedModelTrainer, tokens: int) -> None:
        self.trainer = trainer
        self.tokens = tokens
        self._done = 0  # micro-batches of this step

    def begin_step(self) -> None:
        """Keep what a step changes, but for the gradients, which begin at nothing."""
        self._done = 0
        self._random = RandomState(self.trainer.args.device)
        self._before = [copy.deepcopy(vars(each)) for each in self.trainer.remembered]

    def run_micro_batch(self, model: nn.Module, count_of_step: Tensor | None) -> Tensor:
        """Run the step's next micro-batch, and after a failure all of the step up to it. Returned is its loss; those
        of earlier ones are what they were."""
        first, self._done = self._done, self._done + 1
        while True:
            failure = ""
            try:
                for inputs in self.trainer.batches_of_step[first : self._done]:
                    with self.trainer.accelerator.no_sync(model):
                        loss = self.trainer.step_in_forwards(model, inputs, count_of_step, self.tokens)
                break
            except MemoryRanOutError as error:
                failure = str(error)  # the error itself holds on to tensors
            self._halve(failure)
            self._go_back(model)
            first = 0
        if self.trainer.accelerator.sync_gradients:
            average_over_ranks(model)
        return loss

    @contextlib.contextmanager
    def agreement(self) -> Iterator[None]:
        """A part of a step in which ranks exchange nothing: if one of them runs out of memory, all of them hear it."""
        failure = ""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = first_line(error)
        if largest_of_ranks(int(bool(failure)), self.trainer.args.device):
            raise MemoryRanOutError(failure or "in another process")

    def _halve(self, failure: str) -> None:
        """The half of the largest forward there was, on any rank."""
        device, step = self.trainer.args.device, self.trainer.state.global_step + 1
        lengths = [self.trainer.text_lengths(inputs) for inputs in self.trainer.batches_of_step[: self._done]]
        largest = largest_of_ranks(min(self.tokens, max(map(sum, lengths))), device)
        longest = largest_of_ranks(max(map(max, lengths)), device)
        if largest <= longest:
            raise ValueError(
                f"Memory ran out in step {step} ({failure}) with forwards of one text, of up to {longest} tokens: "
                "lower `cutoff_len`, use a smaller model or an adapter, or set `gradient_checkpointing: true`."
            )
        self.tokens = largest // 2
        if self.trainer.is_world_process_zero():
            logger.warning(
                "Memory ran out in step %d (%s): it runs again in forwards of at most %d tokens, as do those that "
                "follow. `max_tokens_per_batch: %d` begins with that.", step, failure, self.tokens, self.tokens,
            )  # fmt: skip

    def _go_back(self, model: nn.Module) -> None:
        model.zero_grad()
        self._random.restore()
        for each, before in zip(self.trainer.remembered, self._before, strict=True):
            vars(each).update(copy.deepcopy(before))
        gc.collect()  # of what the failed step left in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def average_over_ranks(model: nn.Module) -> None:
    """What DDP does behind a backward."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= dist.get_world_size()
            dist.all_reduce(parameter.grad)


def token_budget_of(trainer: WrappedModelTrainer) -> TokenBudget:
    """The budget of a recipe that asks for one; it begins with the recipe's tokens of a forward."""
    if trainer.is_in_lockstep:
        raise ValueError(
            "`auto_token_budget: true` cannot run a step again under DeepSpeed and FSDP, whose ranks exchange "
            "something in every forward or backward: leave it out, and set `max_tokens_per_batch` to what fits."
        )
    return TokenBudget(trainer, trainer.data_collator.max_tokens)
