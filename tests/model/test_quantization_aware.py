"""Embeddings in a loss as they are read after they were stored, and gradients that pass the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamafactory_embed.model.quantization import rounded
from llamafactory_embed.model.quantization_aware import TrainedPrecision, extremes, straight_through


SIZE = 12
VECTORS = torch.randn(50, SIZE, generator=torch.Generator().manual_seed(0))
VECTORS[:, 3] = 0.25  # a number that never changes
ENDS = extremes(VECTORS[:20])  # some of the others lie outside
WEIGHTS = torch.randn(50, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_the_loss_sees_what_will_be_read(precision: TrainedPrecision) -> None:
    expected = rounded(VECTORS.numpy(), precision, ENDS.numpy())
    found = straight_through(VECTORS.clone().requires_grad_(), precision, ENDS)
    np.testing.assert_array_equal(found.detach().numpy(), expected)


def test_a_gradient_passes_the_steps_of_a_byte_but_not_its_ends() -> None:
    vectors = VECTORS.clone().requires_grad_()
    loss = (WEIGHTS * straight_through(vectors, "int8", ENDS)).sum()
    (found,) = torch.autograd.grad(loss, vectors)
    inside = VECTORS.clamp(*ENDS) == VECTORS
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(found, torch.where(inside, WEIGHTS, 0.0))


def test_the_gradient_of_bits_is_that_of_vectors_of_unit_length() -> None:
    vectors = (10 * VECTORS).requires_grad_()
    (found,) = torch.autograd.grad((WEIGHTS * straight_through(vectors, "binary")).sum(), vectors)
    (expected,) = torch.autograd.grad((WEIGHTS * F.normalize(vectors, dim=-1)).sum(), vectors)
    torch.testing.assert_close(found, expected)
