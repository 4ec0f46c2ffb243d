"""Rules about the host's options that hold for all our stages, in a run and in `recipe check`."""

from __future__ import annotations


def check_that_the_base_is_kept(train_from_scratch: bool, finetuning_type: str) -> None:
    """Refuse to train an adapter on random weights, which no checkpoint would hold."""
    if train_from_scratch and finetuning_type in ("lora", "oft"):
        raise ValueError(
            f"`train_from_scratch: true` with `finetuning_type: {finetuning_type}` would save an adapter without the "
            "random weights below it: use `finetuning_type: full`."
        )
