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

    tdro_lr: float = option(0.02, "Step size of the ascent on the logarithms of the task weights, above 0.")
    tdro_measure: TaskMeasure = option(
        "ratio",
        "What makes a task heavier: the mean of its queries' loss / reference loss (ratio), its mean loss / its mean "
        "reference loss (paper_ratio), the difference of the two, that relative to the reference, or the loss alone.",
    )
    tdro_norm: float = option(
        1.0,
        "Reference losses are divided by their p-norm over the batch, p given here (ratio, relative_difference); "
        "0: as they are.",
        minimum=0.0,
    )
    tdro_start_weights: str = option("uniform", "Task weights to start from: uniform, or the path of a weights JSON.")
    tdro_normalize_on_update: bool = option(
        True, "Let the logarithms of the weights be those of the normalized weights after every update."
    )
    tdro_ema: float = option(
        0.1, "Share of the new weights in their exponential moving average.", minimum=0.0, maximum=1.0
    )
    tdro_optimizer: Literal["sgd", "adamw", "rmsprop", "adagrad"] = option(
        "sgd", "What steps along the measures of the tasks."
    )
    tdro_momentum: float = option(0.0, "Momentum of `tdro_optimizer: sgd`.", minimum=0.0, maximum=1.0)
    tdro_dampening: float = option(0.0, "Dampening of that momentum.", minimum=0.0, maximum=1.0)
    tdro_clip: Literal["norm", "value", "none"] = option("norm", "How the measures of an update are bounded.")
    tdro_max_grad: float = option(1.0, "Their largest norm (norm), or the largest of each (value).", minimum=1e-6)
    tdro_scheduler: Literal["constant", "linear", "cosine"] = option(
        "constant", "How `tdro_lr` changes over the run; linear and cosine also warm up."
    )
    tdro_warmup_steps: int = option(0, "Updates in which `tdro_lr` rises from 0 (linear, cosine).", minimum=0)
    tdro_min_lr_ratio: float = option(
        0.0, "Share of `tdro_lr` that is left at the end (linear, cosine).", minimum=0.0, maximum=1.0
    )
    tdro_top_percents: list[int] = option(
        [20, 30, 40, 50, 60, 70, 80, 90],
        "For each, a file topXX_weights.json with that share of the tasks, the heaviest ones, weighted alike.",
    )
    tdro_cache_reference: bool = option(
        False, "Compute the reference's losses of the whole run beforehand and keep them in a file."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tdro_lr > 0:
            raise ValueError(
                f"`tdro_lr` is the step size of the task weights and must be above 0, not {self.tdro_lr!r}; "
                "tDRO uses 0.02."
            )
        if 0 < self.tdro_norm < 1:
            raise ValueError(f"`tdro_norm` must be 0 (off) or the p of a norm, at least 1, not {self.tdro_norm!r}.")
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
        """Whether the measure compares the proxy with a reference at all."""
        return self.tdro_measure != "loss"
