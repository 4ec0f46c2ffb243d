"""The language-model head and the cross entropy at chosen positions, without ever keeping the logits.

A vocabulary of 150 thousand makes one token's logits as large as all its activations. So they are computed for the
labelled tokens only, a chunk at a time, and thrown away. A head that learns computes them again in the backward pass;
for one that does not, the gradient of the hidden states is taken at once, which saves that third product.
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
from transformers.integrations import is_deepspeed_zero3_enabled


# Logits of one chunk: 128 MiB in float32. Fewer would leave a GPU waiting for the head's weights.
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
    def is_frozen(self) -> bool:
        """Whether nothing of it learns."""
        return not any(parameter.requires_grad for parameter in self.module.parameters())

    @property
    def rows_per_chunk(self) -> int:
        """How many positions to compute at a time."""
        return max(1, LOGITS_PER_CHUNK // self.vocabulary_size)


def token_cross_entropy(hidden: Tensor, head: LanguageModelHead, labels: Tensor, chunk: int | None = None) -> Tensor:
    """-log p(label) of each position, [N] in float32, for hidden states [N, d] and labels [N].

    `chunk` is the number of positions whose logits exist at a time. Gradients reach the hidden states and whatever of
    the head learns.
    """

    def losses(hidden: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head(hidden).float(), labels, reduction="none")

    chunk = chunk or head.rows_per_chunk
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([losses(*part) for part in parts])
    # ZeRO-3 takes a backward through a module for its turn in the backward pass.
    if head.is_frozen and not is_deepspeed_zero3_enabled():
        return torch.cat([_LossesWithGradients.apply(*part, losses) for part in parts])
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])


class _LossesWithGradients(torch.autograd.Function):
    """Losses [n] of hidden states [n, d], and at once the gradient of each with respect to its own state. A loss
    depends on no other state, so the backward pass has only to scale them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            losses = function(states, labels)
            (gradients,) = torch.autograd.grad(losses.sum(), states)
        ctx.save_for_backward(gradients)
        return losses.detach()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * outer[0].unsqueeze(1).to(gradients.dtype), None, None


@torch.no_grad()
def score_tokens(
    hidden: Tensor, head: LanguageModelHead, labels: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same losses [N], and whether the label is the most probable token [N], for evaluation."""
    chunk = chunk or head.rows_per_chunk
    losses, correct = [], []
    for states, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        logits = head(states).float()
        losses.append(cross_entropy(logits, wanted, reduction="none"))
        correct.append(logits.argmax(dim=-1) == wanted)
    return torch.cat(losses), torch.cat(correct)
