"""How far two float32 computations of the same numbers may lie apart, on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


# Rounding errors are as good as random: 4 standard deviations of their sum.
SAFETY = 4.0


def rounding_of_sum(terms: int) -> float:
    """The relative error of a float32 sum, whose order of additions is the machine's: it depends on the width of its
    vectors and the number of its threads.

    Each addition rounds by at most half of `eps`, as often up as down, so that errors grow with the square root of the
    number of terms (Higham and Mary 2019, SIAM J. Sci. Comput. 41(5)). They are relative to the terms: where these
    cancel, the sum is smaller and its error is not. Compare with the largest number of a tensor, not with each.
    """
    return SAFETY * torch.finfo(torch.float32).eps * terms**0.5


def additions_in_network(config: Any, tokens: int, backward: bool = False) -> int:
    """The additions on the longest path through a decoder of this configuration, and back through it to a weight,
    whose gradient is a sum over all tokens."""
    hidden: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * hidden
    # Queries, scores (at most), values by their scores, the projection of these; the two matrices of the MLP.
    layer = hidden + hidden + tokens + hidden + hidden + inner
    terms = config.num_hidden_layers * layer
    return 2 * terms + tokens if backward else terms


def assert_equal_up_to_rounding(actual: Tensor | None, expected: Tensor, terms: int, what: str = "") -> None:
    """Every difference is within the rounding of sums of so many terms as large as the largest number expected."""
    assert actual is not None, what
    tolerance = rounding_of_sum(terms) * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=lambda message: f"{what}: {message}")
