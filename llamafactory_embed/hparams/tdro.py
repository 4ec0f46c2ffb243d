"""Options of `stage: tdro`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .contrastive import ComparisonOptions, RetrievalDataOptions
from .embedding import EmbeddingOptions
from .option import option
from .run import RunOptions


TaskMeasure = Literal["ratio", "paper_ratio", "difference", "relative_difference", "loss"]


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
    tdro_norm: float = option(
        1.0,
        "Divide reference losses by their p-norm over the batch, with this p (ratio, relative_difference); 0: leave "
        "them as they are.",
        minimum=0.0,
    )
    tdro_start_weights: str = option("uniform", "Initial task weights: uniform, or the path of a weights JSON.")
    tdro_normalize_on_update: bool = option(
        True, "After every update, replace the logarithms of the weights by those of the normalized weights."
    )
    tdro_ema: float = option(
        0.1, "Share of the new weights in the exponential moving average.", minimum=0.0, maximum=1.0
    )
    tdro_optimizer: Literal["sgd", "adamw", "rmsprop", "adagrad"] = option("sgd", "Optimizer of the task weights.")
    tdro_momentum: float = option(0.0, "Momentum of `tdro_optimizer: sgd`.", minimum=0.0, maximum=1.0)
    tdro_dampening: float = option(0.0, "Dampening of the momentum (`tdro_optimizer: sgd`).", minimum=0.0, maximum=1.0)
    tdro_clip: Literal["norm", "value", "none"] = option("norm", "How gradients of the task weights are clipped.")
    tdro_max_grad: float = option(
        1.0, "Largest gradient norm (`norm`) or largest absolute gradient (`value`).", minimum=1e-6
    )
    tdro_scheduler: Literal["constant", "linear", "cosine"] = option(
        "constant", "Schedule of `tdro_lr`; linear and cosine can warm up."
    )
    tdro_warmup_steps: int = option(0, "Updates over which `tdro_lr` rises from 0 (linear, cosine).", minimum=0)
    tdro_min_lr_ratio: float = option(
        0.0, "Share of `tdro_lr` that remains at the end (linear, cosine).", minimum=0.0, maximum=1.0
    )
    tdro_top_percents: list[int] = option(
        [20, 30, 40, 50, 60, 70, 80, 90],
        "For each percentage XX, write topXX_weights.json: that share of the tasks, the heaviest, with equal weights.",
    )
    tdro_cache_reference: bool = option(
        False, "Compute the reference losses of the whole run first and keep them in a file."
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
        if self.tdro_optimizer != "sgd" and (self.tdro_momentum or self.tdro_dampening):
            raise ValueError(
                f"`tdro_momentum` and `tdro_dampening` belong to `tdro_optimizer: sgd`, not to {self.tdro_optimizer}."
            )
        if self.tdro_scheduler == "constant" and (self.tdro_warmup_steps or self.tdro_min_lr_ratio):
            raise ValueError(
                "`tdro_warmup_steps` and `tdro_min_lr_ratio` have no effect under `tdro_scheduler: constant`: use "
                "linear or cosine, or leave them out."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the measure compares the proxy with a reference."""
        return self.tdro_measure != "loss"
