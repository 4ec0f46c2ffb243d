"""The option of every stage that trains: where a run ends."""

from __future__ import annotations

from dataclasses import dataclass

from .option import option


@dataclass
class RunOptions:
    """How far a run goes."""

    stop_after_n_steps: int | None = option(
        None,
        "Stop after this many optimizer steps, while the learning rate follows the schedule of the whole run "
        "(`num_train_epochs` or `max_steps`); empty: run to the end.",
        label="Stop after steps",
        minimum=1,
        group="Memory and length of the run",
    )
