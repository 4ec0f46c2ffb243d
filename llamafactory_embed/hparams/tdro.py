"""Options of `stage: tdro`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .contrastive import ComparisonOptions, RetrievalDataOptions
from .embedding import EmbeddingOptions
from .option import option
from .relevance import ON
from .run import RunOptions


TaskMeasure = Literal["ratio", "paper_ratio", "difference", "relative_difference", "loss"]

# Which optimizers of the task weights have a setting; the others would ignore it.
OPTIMIZERS_WITH = {
    "tdro_momentum": ("sgd",),
    "tdro_dampening": ("sgd",),
    "tdro_beta1": ("adamw",),
    "tdro_beta2": ("adamw",),
    "tdro_epsilon": ("adamw", "rmsprop", "adagrad"),
}

MEASURES_WITH_REFERENCE = tuple(measure for measure in get_args(TaskMeasure) if measure != "loss")


@dataclass
class TdroOptions(RunOptions, ComparisonOptions, RetrievalDataOptions, EmbeddingOptions):
    """How task weights follow the losses (Ma et al. 2024, tDRO). The reference is the host's `ref_model`."""

    tdro_lr: float = option(0.02, "Step size of gradient ascent on the logarithms of the task weights; above 0.")
    tdro_measure: TaskMeasure = option(
        "ratio",
        "What raises a task's weight: the mean of loss / reference loss over its queries (ratio), mean loss / mean "
        "reference loss (paper_ratio), their difference (difference), the difference relative to the reference "
        "(relative_difference), or the loss alone (loss).",
    )
    tdro_in_batch_negatives: bool = option(
        False,
        "Compare a query with the passages of all rows of a micro-batch, of all processes, instead of with its own "
        "passages only.",
        label="In-batch negatives",
        group="Measure",
    )
    tdro_norm: float = option(
        1.0,
        "Divide reference losses by their p-norm over the batch, with this p (ratio, relative_difference); 0: leave "
        "them as they are.",
        minimum=0.0,
        group="Measure",
        when={"tdro_measure": ("ratio", "relative_difference")},
    )
    tdro_start_weights: str = option(
        "uniform", "Initial task weights: uniform, or the path of a weights JSON.", group="Task weights"
    )
    tdro_normalize_on_update: bool = option(
        True,
        "After every update, replace the logarithms of the weights by those of the normalized weights.",
        group="Task weights",
    )
    tdro_ema: float = option(
        0.1,
        "Share of the new weights in the exponential moving average.",
        minimum=0.0,
        maximum=1.0,
        group="Task weights",
    )
    tdro_optimizer: Literal["sgd", "adamw", "rmsprop", "adagrad", "adafactor"] = option(
        "sgd", "Optimizer of the task weights.", group="Optimizer of the task weights"
    )
    tdro_momentum: float = option(
        0.0,
        "Momentum of `tdro_optimizer: sgd`.",
        minimum=0.0,
        maximum=1.0,
        group="Optimizer of the task weights",
        when={"tdro_optimizer": OPTIMIZERS_WITH["tdro_momentum"]},
    )
    tdro_dampening: float = option(
        0.0,
        "Dampening of the momentum (`tdro_optimizer: sgd`).",
        minimum=0.0,
        maximum=1.0,
        group="Optimizer of the task weights",
        when={"tdro_optimizer": OPTIMIZERS_WITH["tdro_dampening"], "tdro_momentum": ON},
    )
    tdro_beta1: float = option(
        0.9,
        "Decay of the mean gradient (`tdro_optimizer: adamw`).",
        label="β₁",
        minimum=0.0,
        maximum=0.9999,
        group="Optimizer of the task weights",
        when={"tdro_optimizer": OPTIMIZERS_WITH["tdro_beta1"]},
    )
    tdro_beta2: float = option(
        0.999,
        "Decay of the mean squared gradient (`tdro_optimizer: adamw`).",
        label="β₂",
        minimum=0.0,
        maximum=0.9999,
        group="Optimizer of the task weights",
        when={"tdro_optimizer": OPTIMIZERS_WITH["tdro_beta2"]},
    )
    tdro_epsilon: float | None = option(
        None,
        "Number that keeps adamw, rmsprop and adagrad from dividing by 0; empty: 1e-8, 1e-8 and 1e-10.",
        minimum=1e-30,
        group="Optimizer of the task weights",
        when={"tdro_optimizer": OPTIMIZERS_WITH["tdro_epsilon"]},
    )
    tdro_weight_decay: float = option(
        0.0,
        "Weight decay on the logarithms of the task weights, which draws the weights together.",
        minimum=0.0,
        group="Optimizer of the task weights",
    )
    tdro_clip: Literal["norm", "value", "none"] = option(
        "norm", "How gradients of the task weights are clipped.", group="Optimizer of the task weights"
    )
    tdro_max_grad: float = option(
        1.0,
        "Largest gradient norm (`norm`) or largest absolute gradient (`value`).",
        minimum=1e-6,
        group="Optimizer of the task weights",
        when={"tdro_clip": ("norm", "value")},
    )
    tdro_scheduler: Literal["constant", "linear", "cosine"] = option(
        "constant", "Schedule of `tdro_lr`; linear and cosine can warm up.", group="Schedule of the task weights"
    )
    tdro_warmup_steps: int = option(
        0,
        "Updates over which `tdro_lr` rises from 0 (linear, cosine).",
        minimum=0,
        group="Schedule of the task weights",
        when={"tdro_scheduler": ("linear", "cosine")},
    )
    tdro_warmup_ratio: float = option(
        0.0,
        "The same as a share of all updates (linear, cosine).",
        minimum=0.0,
        maximum=1.0,
        group="Schedule of the task weights",
        when={"tdro_scheduler": ("linear", "cosine")},
    )
    tdro_min_lr_ratio: float = option(
        0.0,
        "Share of `tdro_lr` that remains at the end (linear, cosine).",
        minimum=0.0,
        maximum=1.0,
        group="Schedule of the task weights",
        when={"tdro_scheduler": ("linear", "cosine")},
    )
    tdro_top_percents: list[int] = option(
        [20, 30, 40, 50, 60, 70, 80, 90],
        "For each percentage XX, write topXX_weights.json: that share of the tasks, the heaviest, with equal weights.",
        group="Task weights",
    )
    tdro_cache_reference: bool = option(
        False,
        "Compute the reference losses of the whole run first and keep them in a file.",
        group="Memory and length of the run",
        when={"tdro_measure": MEASURES_WITH_REFERENCE, "tdro_in_batch_negatives": (False,)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tdro_lr > 0:
            raise ValueError(
                f"`tdro_lr` is the step size of the task weights and must be above 0, not {self.tdro_lr!r}; "
                "tDRO uses 0.02."
            )
        if 0 < self.tdro_norm < 1:
            raise ValueError(f"`tdro_norm` must be 0 (off) or a p of at least 1, not {self.tdro_norm!r}.")
        for percent in self.tdro_top_percents:
            if not 1 <= percent <= 100:
                raise ValueError(f"`tdro_top_percents` must lie between 1 and 100, not {percent!r}.")
        for name, optimizers in OPTIMIZERS_WITH.items():
            if self.tdro_optimizer not in optimizers and getattr(self, name) != getattr(TdroOptions, name):
                raise ValueError(
                    f"`{name}` belongs to `tdro_optimizer: {' or '.join(optimizers)}`, not to {self.tdro_optimizer}."
                )
        if self.tdro_warmup_steps and self.tdro_warmup_ratio:
            raise ValueError("`tdro_warmup_steps` and `tdro_warmup_ratio` say the same: give one of them.")
        if self.tdro_scheduler == "constant" and (
            self.tdro_warmup_steps or self.tdro_warmup_ratio or self.tdro_min_lr_ratio
        ):
            raise ValueError(
                "`tdro_warmup_steps`, `tdro_warmup_ratio` and `tdro_min_lr_ratio` have no effect under "
                "`tdro_scheduler: constant`: use linear or cosine, or leave them out."
            )
        if self.tdro_in_batch_negatives and self.tdro_cache_reference:
            raise ValueError(
                "`tdro_cache_reference` keeps a loss for each row, and with `tdro_in_batch_negatives` a row's loss "
                "depends on the other rows of its batch: leave one of them out."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the measure compares the proxy with a reference."""
        return self.tdro_measure in MEASURES_WITH_REFERENCE
