"""The weights of the tasks and how they follow the measures: exponentiated gradient ascent (Ma et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....data.retrieval.weights import read_weights
from ....hparams.tdro import TdroOptions


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
    """The step size after so many updates of the run's total."""
    warmup, least = options.tdro_warmup_steps, options.tdro_min_lr_ratio
    if options.tdro_scheduler == "constant":
        return options.tdro_lr
    if updates < warmup:
        return options.tdro_lr * updates / warmup
    left = max(0, total_updates - updates) / max(1, total_updates - warmup)  # 1 → 0
    if options.tdro_scheduler == "cosine":
        left = (1 + math.cos(math.pi * (1 - left))) / 2
    return options.tdro_lr * (left * (1 - least) + least)


def start_weights(source: str, tasks: Sequence[str]) -> list[float]:
    """The weights that a run starts from (`tdro_start_weights`): all alike, or those of a file, which must have one
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
    """Task weights [G] with their mean, their moving average and the state of their optimizer. Kept in double
    precision on the CPU: every rank has the same ones, computed from the same gathered losses."""

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
        match options.tdro_optimizer:
            case "sgd":
                return torch.optim.SGD(
                    parameters,
                    options.tdro_lr,
                    momentum=options.tdro_momentum,
                    dampening=options.tdro_dampening,
                    maximize=True,
                )
            case "adamw":
                return torch.optim.AdamW(parameters, options.tdro_lr, weight_decay=0.0, maximize=True)
            case "rmsprop":
                return torch.optim.RMSprop(parameters, options.tdro_lr, maximize=True)
            case "adagrad":
                return torch.optim.Adagrad(parameters, options.tdro_lr, maximize=True)

    def update(self, measures: Tensor, total_updates: int) -> float:
        """Step along the measures [G] of the tasks; returns the step size."""
        rate = learning_rate(self.options, self.updates, total_updates)
        self._optimizer.param_groups[0]["lr"] = rate
        self.log_weights.grad = clip_gradient(measures.double(), self.options)
        self._optimizer.step()

        self.current = self.log_weights.softmax(dim=0)
        if self.options.tdro_normalize_on_update:
            self.log_weights.copy_(self.current.log())
        self.mean = (self.mean * self.updates + self.current) / (self.updates + 1)
        self.moving_average = self.moving_average.lerp(self.current, self.options.tdro_ema)
        self.updates += 1
        return rate

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on as if it had not been interrupted."""
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
