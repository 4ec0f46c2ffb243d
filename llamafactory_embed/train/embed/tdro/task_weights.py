"""The weights of the tasks: how they follow the measures (exponentiated gradient ascent, Ma et al. 2024), and their
files, which are those of tDRO: `dataset_weights` of the contrastive stage reads them, and tDRO reads ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.optimization import Adafactor

from ....data.retrieval.weights import read_weights
from ....files import write_json
from ....hparams.tdro import TdroOptions


WeightTable = dict[str, dict[str, Any]]


def clip_gradient(gradient: Tensor, options: TdroOptions) -> Tensor:
    """Bound the measures of an update [G] by their norm or one by one (`tdro_clip`)."""
    match options.tdro_clip:
        case "norm":
            scale = options.tdro_max_grad / (gradient.norm() + 1e-6)
            return gradient * scale.clamp(max=1)
        case "value":
            return gradient.clamp(-options.tdro_max_grad, options.tdro_max_grad)
        case "none":
            return gradient


def learning_rate(options: TdroOptions, updates: int, total_updates: int) -> float:
    """The step size after `updates` of `total_updates`."""
    warmup = options.tdro_warmup_steps or math.ceil(total_updates * options.tdro_warmup_ratio)
    least = options.tdro_min_lr_ratio
    if options.tdro_scheduler == "constant":
        return options.tdro_lr
    if updates < warmup:
        return options.tdro_lr * updates / warmup
    left = max(0, total_updates - updates) / max(1, total_updates - warmup)  # 1 → 0
    if options.tdro_scheduler == "cosine":
        left = (1 + math.cos(math.pi * (1 - left))) / 2
    return options.tdro_lr * (left * (1 - least) + least)


def start_weights(source: str, tasks: Sequence[str]) -> list[float]:
    """The weights that a run starts from (`tdro_start_weights`): equal ones, or those of a file, which must have one
    for each task and for no other."""
    if source == "uniform":
        return [1 / len(tasks)] * len(tasks)
    weights = read_weights(source, "tdro_start_weights", "uniform")
    unknown = [task for task in weights if task not in tasks]
    missing = [task for task in tasks if not weights.get(task, 0) > 0]
    if unknown or missing:
        problems = [f"tasks that the recipe does not have: {', '.join(unknown)}"] if unknown else []
        problems += [f"no weight above 0 for: {', '.join(missing)}"] if missing else []
        raise ValueError(f"`tdro_start_weights`: {source} has {'; and '.join(problems)}.")
    total = sum(weights.values())
    return [weights[task] / total for task in tasks]


class TaskWeights:
    """Task weights [G] with their mean, their moving average and their optimizer, in double precision on the CPU: all
    ranks compute the same ones from the same gathered losses."""

    def __init__(self, start: Sequence[float], options: TdroOptions) -> None:
        self.options = options
        self.current = torch.tensor(start, dtype=torch.float64)
        self.moving_average = self.current.clone()
        self.mean = self.current.clone()  # of no update yet; the first one replaces it
        self.updates = 0
        self.log_weights = self.current.log()
        self._optimizer = self._make_optimizer()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        options, parameters = self.options, [self.log_weights]
        epsilon = {} if options.tdro_epsilon is None else {"eps": options.tdro_epsilon}
        shared: dict[str, Any] = {"lr": options.tdro_lr, "weight_decay": options.tdro_weight_decay}
        match options.tdro_optimizer:
            case "sgd":
                return torch.optim.SGD(
                    parameters,
                    momentum=options.tdro_momentum,
                    dampening=options.tdro_dampening,
                    maximize=True,
                    **shared,
                )
            case "adamw":
                betas = (options.tdro_beta1, options.tdro_beta2)
                return torch.optim.AdamW(parameters, betas=betas, maximize=True, **epsilon, **shared)
            case "rmsprop":
                return torch.optim.RMSprop(parameters, maximize=True, **epsilon, **shared)
            case "adagrad":
                return torch.optim.Adagrad(parameters, maximize=True, **epsilon, **shared)
            case "adafactor":  # as the Trainer uses it, with a step size from outside
                return Adafactor(parameters, scale_parameter=False, relative_step=False, **shared)

    def update(self, measures: Tensor, total_updates: int) -> float:
        """Step along the measures [G] of the tasks and return the step size."""
        rate = learning_rate(self.options, self.updates, total_updates)
        self._optimizer.param_groups[0]["lr"] = rate
        gradient = clip_gradient(measures.double(), self.options)
        # All optimizers maximize, but Adafactor cannot.
        self.log_weights.grad = -gradient if isinstance(self._optimizer, Adafactor) else gradient
        self._optimizer.step()

        self.current = self.log_weights.softmax(dim=0)
        if self.options.tdro_normalize_on_update:
            self.log_weights.copy_(self.current.log())
        self.mean = (self.mean * self.updates + self.current) / (self.updates + 1)
        self.moving_average = self.moving_average.lerp(self.current, self.options.tdro_ema)
        self.updates += 1
        return rate

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not been interrupted."""
        return {
            "current": self.current,
            "moving_average": self.moving_average,
            "mean": self.mean,
            "updates": self.updates,
            "log_weights": self.log_weights.clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.current, self.mean, self.moving_average = state["current"], state["mean"], state["moving_average"]
        self.updates = state["updates"]
        self.log_weights.copy_(state["log_weights"])
        self._optimizer.load_state_dict(state["optimizer"])


def weight_table(weights: Mapping[str, float], sizes: Mapping[str, int]) -> WeightTable:
    """Weights by task as a table of tDRO. `epoch` is how often a row of the task is seen while as many rows are drawn
    as the file's tasks have: weight * (rows of the file's tasks) / (rows of the task)."""
    rows = sum(sizes[task] for task in weights)
    return {
        "domain_ids": {task: number for number, task in enumerate(weights)},
        "domain_weights": dict(weights),
        "size": {task: sizes[task] for task in weights},
        "epoch": {task: weight * rows / sizes[task] for task, weight in weights.items()},
    }


def heaviest(weights: Mapping[str, float], percent: int) -> dict[str, float]:
    """The heaviest tasks, `percent` of all rounded down, with equal weights."""
    count = len(weights) * percent // 100
    return {task: 1 / count for task in sorted(weights, key=lambda task: -weights[task])[:count]}


def weight_tables(
    tasks: Sequence[str], sizes: Sequence[int], weights: TaskWeights, percents: Sequence[int]
) -> dict[str, WeightTable]:
    """The tables of a run by file name."""
    rows = dict(zip(tasks, sizes, strict=True))

    def by_task(values: Any) -> dict[str, float]:
        return dict(zip(tasks, values.tolist(), strict=True))

    current = by_task(weights.current)
    tables = {
        "curr_weights.json": weight_table(current, rows),
        "mean_weights.json": weight_table(by_task(weights.mean), rows),
        "ema_weights.json": weight_table(by_task(weights.moving_average), rows),
    }
    for percent in percents:
        tables[f"top{percent}_weights.json"] = weight_table(heaviest(current, percent), rows)
    return tables


def write_weight_files(folder: str | Path, tables: Mapping[str, WeightTable]) -> None:
    """Write the tables, except those without a task: nothing could be trained on them."""
    for name, table in tables.items():
        if table["domain_ids"]:
            write_json(Path(folder) / name, table)
