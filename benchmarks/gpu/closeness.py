"""How far two computations of the same numbers may lie apart in a precision, and how far they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


# Rounding errors are as good as random: 4 standard deviations of their sum.
SAFETY = 4.0

# Results that are rounded to the model's precision in a layer: two norms, queries, keys, values, their rotation,
# attention, its projection, two of the MLP's products, their activation and product, the last one, two residual sums.
ROUNDINGS_OF_LAYER = 16


def allowed_error(dtype: torch.dtype, layers: int, terms: int, additions: int = 1, backward: bool = False) -> float:
    """The relative error of a decoder's states, or of its gradients.

    In float32 the sums inside of products round, `terms` of them in a layer. Sixteen-bit products are summed in
    float32 and only their results round, to half of `eps`. `additions` counts sums that a gradient is gathered in, one
    for each forward that adds to it. Independent errors grow with the square root of their number (Higham and Mary
    2019, SIAM J. Sci. Comput. 41(5)).
    """
    roundings = layers * (terms if dtype == torch.float32 else ROUNDINGS_OF_LAYER)
    total = (2 * roundings if backward else roundings) + additions
    return SAFETY * torch.finfo(dtype).eps / 2 * total**0.5


def terms_of_layer(config: Any, tokens: int) -> int:
    """The additions on the longest path through a layer: queries, scores, values, outputs, the MLP's two products."""
    return 4 * int(config.hidden_size) + 2 * int(config.intermediate_size) + tokens


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ in float64; NaN where either has one."""
    wanted = expected.detach().double()
    difference = (actual.detach().double() - wanted).norm()
    return float(difference / wanted.norm().clamp_min(1e-30))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients."""
    return {name: each.grad.detach().clone() for name, each in model.named_parameters() if each.grad is not None}


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error among matrices by name; NaN and a missing one are worse than any."""
    if found.keys() != expected.keys():
        return float("inf")
    errors = [relative_error(found[name], each) for name, each in expected.items()]
    return max((error if error == error else float("inf") for error in errors), default=0.0)


def weighted_sum(states: Sequence[Tensor]) -> Tensor:
    """A scalar that weighs every text's mean state [d] and every dimension otherwise, the same on every machine."""
    chance = torch.Generator().manual_seed(1)
    weights = torch.randn(len(states), states[0].shape[-1], generator=chance).to(states[0].device)
    means = torch.stack([state.float().mean(dim=0) for state in states])
    return (means * weights).sum()
