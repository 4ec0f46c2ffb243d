"""A recipe run in this process, for a command that follows the run step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback


def run_recipe(recipe: Mapping[str, Any], callbacks: Sequence[TrainerCallback] = ()) -> None:
    """What `llamafactory-cli train` does with a recipe's values on one device; `callbacks` see every step."""
    from llamafactory.train.tuner import run_exp  # late: it imports the whole host

    run_exp(dict(recipe), list(callbacks))
