"""The bound that numerical tests use holds for sums in any order, and for nothing that is wrong."""

from __future__ import annotations

import pytest
import torch

from tests.rounding import additions_in_network, assert_equal_up_to_rounding, rounding_of_sum
from tests.tiny_models import FAMILIES, tiny_config


@pytest.mark.parametrize("terms", [10, 1000, 100_000])
def test_orders_of_addition_are_within_the_bound(terms: int) -> None:
    numbers = torch.randn(terms, 20, generator=torch.Generator().manual_seed(terms))
    exact = numbers.double().sum(dim=0).float()
    # NumPy adds one after the other in float32, PyTorch in double precision.
    forwards, backwards = (torch.from_numpy(each.numpy().cumsum(axis=0)[-1]) for each in (numbers, numbers.flip(0)))
    assert not torch.equal(forwards, backwards)
    assert_equal_up_to_rounding(forwards, exact, terms)
    assert_equal_up_to_rounding(backwards, exact, terms)


def test_another_number_is_not_within_the_bound() -> None:
    numbers = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    total = numbers.sum(dim=0)
    wrong = total.clone()
    wrong[3] += 1e-3 * total.abs().max()
    with pytest.raises(AssertionError, match="the sum: "):
        assert_equal_up_to_rounding(wrong, total, len(numbers), "the sum")
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(torch.full_like(total, torch.nan), total, len(numbers))
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(None, total, len(numbers))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_of_a_tiny_network_is_tight(family: str) -> None:
    terms = additions_in_network(tiny_config(family), tokens=31, backward=True)
    assert rounding_of_sum(terms) < 2e-5
    assert additions_in_network(tiny_config(family), tokens=31) < terms
