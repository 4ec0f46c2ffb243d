"""The arithmetic of a merge, tensor by tensor, in float32 or in the tensors' own larger type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .options import Method


PARALLEL = 1e-6  # of the angle between two weights, below which the arc is a straight line


def merge_tensors(tensors: Sequence[Tensor], weights: Sequence[float], method: Method, name: str = "") -> Tensor:
    """One tensor of all checkpoints → that of the merged one, in the type of the first. Whole numbers and flags are
    no weights: they must be alike."""
    first = tensors[0]
    shapes = {tuple(each.shape) for each in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"The weight `{name}` has the shapes {', '.join(str(list(shape)) for shape in sorted(shapes))} in these "
            "checkpoints: merge checkpoints of one architecture and one vocabulary."
        )
    if not first.is_floating_point():
        if not all(torch.equal(first, each) for each in tensors):
            raise ValueError(f"`{name}` holds whole numbers that differ between the checkpoints: they have no mean.")
        return first
    merged = weighted_mean(tensors, weights) if method == "linear" else slerp(tensors[0], tensors[1], weights[1])
    return merged.to(first.dtype)


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ weight · tensor; the weights sum to 1."""
    total = torch.zeros(tensors[0].shape, dtype=_exact(tensors[0].dtype))
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.to(total.dtype)
    return total


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between two tensors, each taken as one vector. The direction follows
    the arc, and the length goes straight from the one's to the other's."""
    kind = _exact(start.dtype)
    start, end = start.to(kind), end.to(kind)
    lengths = start.norm(), end.norm()
    if min(lengths) == 0:
        return torch.lerp(start, end, t)
    directions = start / lengths[0], end / lengths[1]
    angle = torch.acos((directions[0] * directions[1]).sum().clamp(-1, 1))
    if angle < PARALLEL or torch.pi - angle < PARALLEL:  # between opposite ones there is no one arc
        return torch.lerp(start, end, t)
    direction = (torch.sin((1 - t) * angle) * directions[0] + torch.sin(t * angle) * directions[1]) / torch.sin(angle)
    return direction * torch.lerp(lengths[0], lengths[1], t)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
