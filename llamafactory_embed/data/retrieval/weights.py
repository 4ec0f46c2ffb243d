"""How often each task is drawn: in proportion to its rows, uniformly, tempered, or by given weights."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence

from ...foreign import read_foreign_json


PROPORTIONAL = "proportional"


def task_shares(
    weights: str | Mapping[str, float], names: Sequence[str], sizes: Sequence[int], temperature: float = 1.0
) -> list[float] | None:
    """Each task's share of the draws, summing to 1; None where every row is to be seen once (`proportional`).

    `weights` is `proportional`, `uniform`, `temperature`, a mapping from task to weight, or the path of a weights
    file. Tempered shares go with size ** (1 / temperature): 1 is proportional, a large temperature nearly uniform.
    """
    if weights == PROPORTIONAL:
        return None
    if weights == "uniform":
        return [1 / len(names)] * len(names)
    if weights == "temperature":
        if temperature <= 0:
            raise ValueError(f"`dataset_sampling_temperature` must be above 0, not {temperature}.")
        tempered = [size ** (1 / temperature) for size in sizes]
        return [value / sum(tempered) for value in tempered]
    source = "`dataset_weights`"
    if isinstance(weights, str):
        source = f"`dataset_weights`: {weights}"
        weights = read_weights(weights)
    return _match_weights(weights, names, source)


def read_weights(
    path: str, option: str = "dataset_weights", others: str = "proportional, uniform, temperature"
) -> dict[str, float]:
    """Weights by task from JSON: a plain mapping, or tDRO's file (`domain_ids`, `domain_weights`, `size`, `epoch`).
    `option` names the file in the recipe, and could have one of the values `others` in its place."""
    if not os.path.isfile(path):
        raise ValueError(f"`{option}` must be {others}, or a JSON file of weights; there is no file `{path}`.")
    try:
        content = read_foreign_json(path, "write task names with their weights.")
    except ValueError as error:
        raise ValueError(f"`{option}`: {error}") from error
    if isinstance(content, dict) and "domain_weights" in content:
        content = content["domain_weights"]
    if not isinstance(content, dict):
        raise ValueError(f"`{option}`: {path} must map task names to weights, or be a weights file of tDRO.")
    return content


def _match_weights(weights: Mapping[str, float], names: Sequence[str], source: str) -> list[float]:
    """A task that is not listed has weight 0, as in tDRO's `topXX` files, which list the tasks to train on.

    Every listed name must be a task of the recipe: a misspelt one would otherwise silently be left out.
    """
    unknown = [name for name in weights if name not in names]
    unlisted = [name for name in names if name not in weights]
    if unknown:
        without = f", and these tasks of the recipe have no weight: {', '.join(unlisted)}" if unlisted else ""
        raise ValueError(f"{source} lists tasks that the recipe does not have: {', '.join(unknown)}{without}.")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ValueError(f"{source}: the weight of `{name}` must be a number of at least 0, not {weight!r}.")
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(f"{source} gives no task a weight above 0.")
    return [weights.get(name, 0.0) / total for name in names]


def share_out(total: int, shares: Sequence[float], rng: random.Random) -> list[int]:
    """Whole numbers that sum to `total` and follow the shares, by largest remainder; ties are drawn."""
    exact = [total * share for share in shares]
    counts = [int(value) for value in exact]
    order = [task for task, share in enumerate(shares) if share > 0]
    rng.shuffle(order)
    order.sort(key=lambda task: counts[task] - exact[task])
    for task in order[: total - sum(counts)]:
        counts[task] += 1
    return counts
