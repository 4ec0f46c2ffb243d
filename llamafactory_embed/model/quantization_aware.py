"""Vectors as they come back from bytes or bits, for a loss that has to learn with them: the numbers of
`quantization.rounded`, and a gradient that passes the steps.

The derivative of a rounded number is 0 almost everywhere. The straight-through estimator (Bengio et al. 2013) takes
that of the number before it was rounded. A number outside of its range is cut to the nearer end whatever it is, so its
gradient is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantization import STEPS


TrainedPrecision = Literal["int8", "binary"]


def straight_through(vectors: Tensor, precision: TrainedPrecision, ends: Tensor | None = None) -> Tensor:
    """Vectors [..., d] of float32 → the vectors that are read after they were stored, with a gradient to `vectors`.

    `ends` [2, d] are those between which int8 counts. Bits know no length: their gradient is that of the vectors
    brought to unit length, as which they are read.
    """
    if precision == "binary":
        passing = F.normalize(vectors, dim=-1)
        read = torch.where(vectors > 0, 1.0, -1.0) / vectors.shape[-1] ** 0.5
    else:
        assert ends is not None, "int8 counts between two ends"
        starts, last = ends
        widths = (last - starts) / STEPS
        steps = torch.where(widths == 0, 1.0, widths)  # of a number that never changes
        codes = torch.floor((vectors - starts) / steps).clamp(0, STEPS)
        # Not `clamp`: from torch 2.14 on it halves the gradient of a number that is an end.
        passing = torch.where((starts <= vectors) & (vectors <= last), vectors, 0.0)
        read = (codes + 0.5) * widths + starts
    return read.detach() + (passing - passing.detach())  # what is added is 0, but has the gradient


def extremes(vectors: Tensor) -> Tensor:
    """The smallest and the largest number of each dimension: [n, d] → [2, d], without a gradient."""
    return torch.stack([vectors.detach().amin(dim=0), vectors.detach().amax(dim=0)])
