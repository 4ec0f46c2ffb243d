"""The layers behind the pooling: linear maps of an embedding, as the Dense modules of sentence-transformers.

EmbeddingGemma, LaBSE and others end with them. They project to another size (a wide model, a small index) and train
together with the model, also where LoRA trains little else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


# By the names that recipes use; the classes are how sentence-transformers calls them in a Dense module's config.json.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class DenseLayer:
    """One linear layer and what follows it."""

    size: int
    """Of its output."""
    bias: bool = True
    activation: str = "identity"


def plan_dense(sizes: Sequence[int], bias: bool, activations: Sequence[str]) -> list[DenseLayer]:
    """The layers that a recipe asks for: one activation for all of them, or one for each."""
    unknown = [name for name in activations if name not in ACTIVATIONS]
    if unknown:
        raise ValueError(f"`dense_activations` may hold {', '.join(ACTIVATIONS)}, not {unknown[0]!r}.")
    if any(size < 1 for size in sizes):
        raise ValueError(f"`dense_sizes` must be sizes of at least 1, not {list(sizes)}.")
    if len(activations) not in (1, len(sizes)) and sizes:
        raise ValueError(
            f"`dense_activations` names {len(activations)} functions for the {len(sizes)} layers of `dense_sizes`: "
            "name one for all of them or one for each."
        )
    each = activations if len(activations) == len(sizes) else list(activations) * len(sizes)
    return [DenseLayer(size, bias, activation) for size, activation in zip(sizes, each, strict=True)]


class DenseHead(nn.Module):
    """Embeddings [B, d] → [B, size of the last layer]; without layers, the embeddings themselves."""

    def __init__(self, hidden_size: int, layers: Sequence[DenseLayer]) -> None:
        super().__init__()
        sizes = [hidden_size, *(layer.size for layer in layers)]
        self.layers = nn.ModuleList(
            nn.Linear(before, layer.size, layer.bias) for before, layer in zip(sizes, layers, strict=False)
        )
        self.activations = [ACTIVATIONS[layer.activation]() for layer in layers]  # they have no weights

    def forward(self, embeddings: Tensor) -> Tensor:
        """In the precision of its weights, not in that of the language model: similarities are divided by temperatures
        as small as 0.002."""
        with torch.autocast(embeddings.device.type, enabled=False):
            for linear, activation in zip(self.layers, self.activations, strict=True):
                embeddings = activation(linear(embeddings.to(linear.weight.dtype)))
        return embeddings
