"""The language-model head and the cross entropy at chosen positions, without ever keeping the logits.

A vocabulary of 150 thousand makes one token's logits as large as all its activations. So they are computed for the
labelled tokens only, a chunk at a time, and thrown away; what each label counts is known before, so that the gradients
of hidden states and head are taken at once, and no logits are computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


# Logits of one chunk: 128 MiB in float32. With fewer a GPU would wait for the head's weights, and a CPU would spend
# its time on gradients of the head, of which each chunk makes one.
LOGITS_PER_CHUNK = 2**25


@dataclass(frozen=True)
class LanguageModelHead:
    """Hidden states [N, d] → logits [N, V], as the model itself computes them.

    The module is called, never its weight read: what PEFT, the host or an engine put around it takes part.
    """

    module: nn.Module
    vocabulary_size: int
    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of_model(cls, model: nn.Module) -> LanguageModelHead:
        """The head of a causal language model, PEFT's wrapper around it or not."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper has that method
        module = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
        if module is None:
            raise ValueError(f"{type(base).__name__} has no language-model head: it cannot predict tokens.")
        config = base.config
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(module, config.vocab_size, scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2, 3

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.module(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.soft_cap is None else torch.tanh(logits / self.soft_cap) * self.soft_cap

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters of the head that learn."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def rows_per_chunk(self) -> int:
        """How many positions to compute at a time."""
        return max(1, LOGITS_PER_CHUNK // self.vocabulary_size)


def summed_cross_entropy(
    hidden: Tensor,
    head: LanguageModelHead,
    labels: Tensor,
    weights: Tensor,
    *,
    chunk: int | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """The sum of weights [N] * -log p(label) for hidden states [N, d] and labels [N], with gradients for the states
    and whatever of the head learns; and -log p(label) of each position [N] in float32, without a graph.

    `chunk` is the number of positions whose logits exist at a time. `recompute` computes them again in the backward
    pass, for engines that must see a backward through every module: ZeRO-3 and FSDP gather its weights there.
    """

    def losses_of(hidden: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head(hidden).float(), labels, reduction="none")

    chunk = chunk or head.rows_per_chunk
    if torch.is_grad_enabled() and not recompute:
        total, losses = _SumWithGradients.apply(losses_of, chunk, labels, weights, hidden, *head.learned)
        return total, losses
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    if torch.is_grad_enabled():
        losses = torch.cat([checkpoint(losses_of, *part, use_reentrant=False) for part in parts])
    else:
        losses = torch.cat([losses_of(*part) for part in parts])
    return (losses * weights).sum(), losses.detach()


class _SumWithGradients(torch.autograd.Function):
    """A weighted sum of losses with its gradients, so that the backward pass has only to scale them.

    It is the sum that has a gradient, not the losses: that of the head cannot be taken apart by positions any more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        losses_of: Callable[[Tensor, Tensor], Tensor],
        chunk: int,
        labels: Tensor,
        weights: Tensor,
        hidden: Tensor,
        *learned: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # Of what is learned. New tensors instead of the views that a product gives: to views Autograd adds the
        # gradient of a tied embedding in a third copy.
        totals = [torch.zeros_like(each) for each in learned]

        def losses_and_gradients(states: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            """Those of one chunk; its gradient of the head, as large as the head, is freed before the next chunk."""
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                losses = losses_of(states, labels)
                of_states, *of_learned = torch.autograd.grad(
                    losses, [states, *learned], grad_outputs=weights, allow_unused=True, materialize_grads=True
                )
            for total, more in zip(totals, of_learned, strict=True):
                total += more
            return losses.detach(), of_states

        chunks = zip(hidden.split(chunk), labels.split(chunk), weights.split(chunk), strict=True)
        results = [losses_and_gradients(*each) for each in chunks]
        ctx.save_for_backward(torch.cat([of_states for _, of_states in results]), *totals)
        losses = torch.cat([losses for losses, _ in results])
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second copy of the head's gradient would be as large as the head. Autograd refuses a second
        # backward pass over what was changed.
        scaled = [each.mul_(outer[0].to(each.dtype)) for each in ctx.saved_tensors]
        return (None, None, None, None, *scaled)


@torch.no_grad()
def score_tokens(
    hidden: Tensor, head: LanguageModelHead, labels: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same losses [N], and whether the label is the most probable token [N], for evaluation."""
    chunk = chunk or head.rows_per_chunk
    losses, correct = [], []
    for states, targets in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        logits = head(states).float()
        losses.append(cross_entropy(logits, targets, reduction="none"))
        correct.append(logits.argmax(dim=-1) == targets)
    return torch.cat(losses), torch.cat(correct)
