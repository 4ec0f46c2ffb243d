"""Steps whose gradients are not numbers, because their loss is none or because something overflows: named, and skipped
or the end of the run, before they reach the weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .interruption import largest_of_ranks


if TYPE_CHECKING:
    from .trainer import WrappedModelTrainer


logger = logging.getLogger(__name__)

ROWS = "rows"  # the key of a batch under which its rows are named
MOST_NAMED = 12


class NamesRows:
    """A collator that also says which rows it was given; it runs in the data loader's workers."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        return {**self.collate(items), ROWS: [name_of_row(item) for item in items]}


def name_of_row(item: Any) -> str:
    """A row by its task and its number, counted from 1; a row of documents by its place in the epoch's order."""
    if hasattr(item, "row_index"):
        return f"{item.task} row {item.row_index + 1}"
    return f"row {item.place + 1} of the epoch" if hasattr(item, "place") else "a row"


class BadSteps(TrainerCallback):
    """Looks at the gradients before the optimizer does."""

    def __init__(self, trainer: WrappedModelTrainer, policy: Literal["stop", "skip"], limit: int) -> None:
        self.trainer = trainer
        self.policy = policy
        self.limit = limit
        self.skipped = 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if getattr(self.trainer.accelerator, "scaler", None) is not None:
            return  # in fp16, gradients that overflow belong to looking for a scale
        if not largest_of_ranks(int(has_bad_gradient(kwargs["model"])), args.device):
            return
        named = describe_rows(self.trainer.batches_of_step)
        sentence = f"The loss of step {state.global_step + 1} or a gradient of it is not a number ({named})"
        if self.policy == "skip" and self.skipped < self.limit:
            self.skipped += 1
            logger.warning("%s: skipped, %d of %d.", sentence, self.skipped, self.limit)
            skip_next_step(kwargs["optimizer"])
            return
        kept = self._save(state)
        raise ValueError(
            f"{sentence}: {kept}lower `learning_rate`, look at these rows, or let such steps be left out with "
            f"`bad_loss: skip`{' and a larger `bad_loss_limit`' if self.policy == 'skip' else ''}."
        )

    def _save(self, state: TrainerState) -> str:
        """A checkpoint of the state before the step."""
        if state.global_step == 0 or self.trainer.loss_has_a_state:
            return ""
        checkpoint = Path(self.trainer.args.output_dir, f"checkpoint-{state.global_step}")
        if not checkpoint.is_dir():
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        return f"{checkpoint} is the state before it; "


def has_bad_gradient(model: nn.Module) -> bool:
    """Whether a gradient holds NaN or infinity."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    parts = [each.to_local() if hasattr(each, "to_local") else each for each in gradients]  # of FSDP2's shards
    if not parts or bool(torch.nn.utils.get_total_norm(parts).isfinite()):
        return False  # one pass over them; looking at each number takes several
    # Numbers beyond 1e19 have a norm of infinity, too.
    return not bool(torch.stack([part.isfinite().all().to(parts[0].device) for part in parts]).all())


def describe_rows(batches: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a step, those of this rank."""
    rows = [row for batch in batches for row in batch.get(ROWS, ())]
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return f"{', '.join(rows[:MOST_NAMED])}{more}"


def skip_next_step(optimizer: Any) -> None:
    """Let the optimizer's next step do nothing."""
    step = optimizer.step

    def skip(*args: Any, **kwargs: Any) -> None:
        optimizer.step = step

    optimizer.step = skip
