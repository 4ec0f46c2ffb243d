"""Evaluation of `stage: mntp`."""

from __future__ import annotations

import math

from torch import Tensor

from ...masked_trainer import TokenTrainer


class MntpTrainer(TokenTrainer):
    """Loss, accuracy and pseudo-perplexity of the tokens that fixed masks hide."""

    def summarize(self, sums: Tensor) -> dict[str, float]:
        metrics = super().summarize(sums)
        # Not Salazar et al.'s, which hides one token at a time: those hidden together make one another harder.
        return metrics | {"pseudo_perplexity": math.exp(min(metrics["loss"], 700.0))}
