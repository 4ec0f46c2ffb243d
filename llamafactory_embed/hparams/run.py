"""The options of every stage that trains: where a run ends, and what its model card says that no program can know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .option import option


@dataclass
class RunOptions:
    """How far a run goes, and what it says of its model."""

    stop_after_n_steps: int | None = option(
        None,
        "Stop after this many optimizer steps, while the learning rate follows the schedule of the whole run "
        "(`num_train_epochs` or `max_steps`); empty: run to the end.",
        label="Stop after steps",
        minimum=1,
        group="Memory and length of the run",
    )
    bad_loss: Literal["stop", "skip"] = option(
        "stop",
        "What happens when the loss or a gradient is not a number: stop, with a checkpoint of the state before; or "
        "skip the step.",
        label="Loss that is no number",
        group="Memory and length of the run",
    )
    bad_loss_limit: int = option(
        3,
        "How many steps may be skipped before the run stops.",
        label="Most skipped steps",
        minimum=1,
        when={"bad_loss": ("skip",)},
        group="Memory and length of the run",
    )
    preemption_signal: Literal["SIGUSR1", "SIGUSR2"] | None = option(
        None,
        "Another signal at which the run stops with a checkpoint, as it does at SIGTERM and SIGINT; empty: none.",
        label="Preemption signal",
        group="Memory and length of the run",
    )
    ignore_changed_data: bool = option(
        False,
        "Go on from a checkpoint although files of the data have changed since.",
        label="Ignore changed data",
        group="Memory and length of the run",
    )
    card_license: str | None = option(
        None,
        "Licence of the trained model on its card, by the hub's name for it (apache-2.0); empty: none is named.",
        group="Model card",
    )
    card_language: str | None = option(
        None, "Languages of the model on its card, by their codes (en, de); empty: none is named.", group="Model card"
    )
    card_samples: int = option(
        0,
        "Rows of each retrieval task that the model card shows to whoever reads it; 0: none.",
        minimum=0,
        group="Model card",
    )

    def __post_init__(self) -> None:
        for name, pattern, example in (
            ("card_license", r"[a-z0-9][a-z0-9.-]*", "`apache-2.0`"),
            ("card_language", r"[a-z]{2,3}(-[A-Za-z0-9]+)*(\s*,\s*[a-z]{2,3}(-[A-Za-z0-9]+)*)*", "`en` or `en, de`"),
        ):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise ValueError(f"`{name}: {value}` is not written as hubs write it: {example}, for instance.")
        also = getattr(super(), "__post_init__", None)  # of the options that a stage has besides
        if also is not None:
            also()


@dataclass
class TokenBudgetOptions:
    """Memory that runs out in a step, for stages whose steps can run again."""

    auto_token_budget: bool = option(
        False,
        "Run a step forward by forward, each of at most `max_tokens_per_batch` tokens and with a backward of its own; "
        "when memory runs out, halve the tokens and run the step again.",
        label="Halve forwards when memory runs out",
        group="Memory and length of the run",
    )
