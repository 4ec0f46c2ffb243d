"""The training step of `stage: ddm` and `ddm-sft`: attention that opens step by step, or that blocks close."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from attention_patch import annealed_mask, annealing_ratio

from ...diffusion.blocks import block_mask
from ...diffusion.bound import bound_metrics
from ...diffusion.noise import seeded_generator
from ...hparams.ddm import DiffusionOptions
from ...model.token_predictor import TokenBatch
from ..masked_trainer import TokenTrainer


class DiffusionTrainer(TokenTrainer):
    """Cross entropies of hidden tokens; an evaluation estimates the bound, always with the attention that training
    ends with."""

    def __init__(self, *, options: DiffusionOptions, longest_text: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.longest_text = longest_text

    def prepare_batches(self, inputs: dict[str, Any]) -> list[TokenBatch]:
        batches = self._in_blocks(super().prepare_batches(inputs))
        ratio = annealing_ratio(self.state.global_step, self.options.anneal_steps)
        if ratio == 1:
            return batches
        longest = max(max(batch.packed.lengths) for batch in batches)  # rows tokenized earlier may have been cut later
        return with_mask(batches, self._opening_mask(ratio, max(longest, self.longest_text)))

    def score(self, batches: list[TokenBatch], loss_count: float) -> Tensor:
        return super().score(self._in_blocks(batches), loss_count)

    def summarize(self, sums: Tensor) -> dict[str, float]:
        return super().summarize(sums) | bound_metrics(float(sums[0] / sums[1]))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """While attention opens, the log says how far it has."""
        if "loss" in logs and self.options.anneal_steps > 1:
            logs["annealing_ratio"] = annealing_ratio(self.state.global_step - 1, self.options.anneal_steps)
        super().log(logs, *args, **kwargs)

    def _opening_mask(self, ratio: float, size: int) -> Tensor:
        """Causal OR Bernoulli(`ratio`), one draw for all texts of a step (DiffuLLaMA, arXiv 2410.17891). It depends on
        nothing but seed and step: micro-batches and ranks share it, and a resumed run draws it again."""
        device = self.args.device
        generator = seeded_generator(self.args.seed, self.state.global_step, device=device)
        return annealed_mask(size, ratio, generator=generator, device=device)

    def _in_blocks(self, batches: list[TokenBatch]) -> list[TokenBatch]:
        if self.options.block_size is None:
            return batches
        longest = max(max(batch.packed.lengths) for batch in batches)
        return with_mask(batches, block_mask(longest, self.options.block_size, self.args.device))


def with_mask(batches: list[TokenBatch], allowed: Tensor) -> list[TokenBatch]:
    """Give every text the upper left corner of a mask [1, 1, S, S]."""
    masked = []
    for batch in batches:
        longest = max(batch.packed.lengths)
        masked.append(dataclasses.replace(batch, allowed=allowed[..., :longest, :longest]))
    return masked
