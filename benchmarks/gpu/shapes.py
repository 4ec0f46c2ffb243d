"""Models of published shapes with random weights, texts of given lengths, and the operations that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..inputs import log_normal_lengths


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    name: str
    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool = True

    @property
    def parameters(self) -> int:
        """Numbers in its matrices."""
        return self.layers * self.layer_matrices + (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def layer_matrices(self) -> int:
        """Numbers in the matrices of one layer: queries and outputs, keys and values, the MLP's three."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.key_value_heads)
        return attention + 3 * self.hidden * self.inner


QWEN3 = Shape("Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128, 151_936)
SMOLLM2 = Shape("SmolLM2-135M", "llama", 30, 576, 1536, 9, 3, 64, 49_152)
LLADA = Shape("LLaDA-8B", "llada", 32, 4096, 12_288, 32, 32, 128, 126_464, tied=False)
SMALLER_LLADA = Shape("LLaDA, a quarter of its layers", "llada", 8, 4096, 12_288, 32, 32, 128, 126_464, tied=False)

TINY_QWEN3 = Shape("tiny Qwen3", "qwen3", 2, 32, 48, 4, 2, 8, 400)
TINY_LLAMA = Shape("tiny Llama", "llama", 2, 32, 48, 4, 2, 8, 400)
TINY_LLADA = Shape("tiny LLaDA", "llada", 2, 32, 48, 4, 4, 8, 400, tied=False)


# --------------------------------------------------------------------------------------------------------------------
# Operations
# --------------------------------------------------------------------------------------------------------------------


def forward_operations(shape: Shape, lengths: Sequence[int], scored: int = 0) -> int:
    """Floating-point operations of a forward over texts of these lengths, with the head on `scored` positions.

    A product of an [m, k] and a [k, n] matrix has 2mkn. Attention is bidirectional: each text's scores, and their
    product with the values. Norms, activations, rotary embeddings and the softmax do not count.
    """
    projections = sum(lengths) * shape.layer_matrices
    attention = 2 * shape.heads * shape.head_size * sum(length**2 for length in lengths)
    return 2 * (shape.layers * (projections + attention) + scored * shape.hidden * shape.vocabulary)


def training_operations(shape: Shape, lengths: Sequence[int], scored: int = 0, frozen: bool = False) -> int:
    """Those of forward and backward, which has two products for each of the forward's. With `frozen` matrices (LoRA)
    there is no gradient of the matrices, so that attention alone keeps its second product; the adapters, some
    thousandths, do not count. Nor does what an implementation computes twice to save memory."""
    forward = forward_operations(shape, lengths, scored)
    if not frozen:
        return 3 * forward
    attention = forward_operations(shape, lengths) - 2 * shape.layers * sum(lengths) * shape.layer_matrices
    return 2 * forward + attention


# --------------------------------------------------------------------------------------------------------------------
# Models and texts
# --------------------------------------------------------------------------------------------------------------------


def config_of(shape: Shape, longest: int = 4096) -> Any:
    """Its configuration; `is_causal: false` makes it bidirectional wherever transformers does."""
    from transformers import AutoConfig

    import llamafactory_embed.model.families  # noqa: F401  makes transformers know LLaDA

    more: dict[str, Any] = {"head_dim": shape.head_size}
    if shape.family == "llada":
        more = {"mask_token_id": shape.vocabulary - 1}
    if shape.family == "qwen3_5_text":  # a gated delta rule before each layer of attention
        half = shape.head_size // 2
        more |= {
            "layer_types": (["linear_attention", "full_attention"] * shape.layers)[: shape.layers],
            "linear_num_key_heads": shape.key_value_heads,
            "linear_num_value_heads": shape.heads,
            "linear_key_head_dim": shape.head_size,
            "linear_value_head_dim": shape.head_size,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
            },
        }
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=longest,
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        # Weights large enough for attention to matter: with the usual 0.02 all texts would have nearly the same
        # embedding, and equal losses would prove nothing.
        initializer_range=1.5 / math.sqrt(shape.hidden),
        **more,
    )
    config.is_causal = False
    return config


def build_model(shape: Shape, device: str, dtype: torch.dtype, head: bool = False) -> Any:
    """A model with random weights, made on its device; with its head if asked."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    kind = AutoModelForCausalLM if head else AutoModel
    with torch.device(device):
        return kind.from_config(config_of(shape), dtype=dtype)


def random_texts(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Texts of random tokens, none of them special."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, vocabulary - 1, (sum(lengths),), generator=chance)
    return [part.tolist() for part in tokens.split(list(lengths))]


def mixed_lengths(count: int, longest: int, fill: float, seed: int = 0) -> list[int]:
    """Log-normal lengths up to `longest` whose mean is `fill` of it, in random order; a fill of 1: all equal."""
    import random

    lengths = [min(longest, max(2, length)) for length in log_normal_lengths(count, longest * fill, fill)]
    random.Random(seed).shuffle(lengths)
    return lengths
