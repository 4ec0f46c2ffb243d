"""What all ranks hold: tensors with gradients that flow back to the rank each part came from, and plain values."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...model.vector_sets import VectorSets


T = TypeVar("T")


def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors [n, …] of all ranks, in rank order. Every rank must bring the same shape, on the device
    that it trains on: NCCL knows no other.

    In backward the gradients that all ranks have for a part are summed. With DDP's averaging that makes the mean of
    the ranks' losses, whose rows may refer to any rank's part, exactly the loss of one process with the joined batch.
    """
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor)


def gather_sets(sets: VectorSets) -> VectorSets:
    """The texts of all ranks with their vectors, in rank order; every rank brings as many texts, each with as many
    vectors as it has. Vectors travel in blocks of the largest rank's size, and gradients flow back as in `gather`."""
    if world_size() == 1:
        return sets
    vectors = sets.vectors
    counts = gather(torch.tensor(sets.counts, device=vectors.device)).view(world_size(), -1).tolist()
    totals = [sum(each) for each in counts]
    missing = vectors.new_zeros(max(totals) - len(vectors), vectors.shape[1])
    blocks = gather(torch.cat([vectors, missing])).split(max(totals))
    own = [block[:total] for block, total in zip(blocks, totals, strict=True)]
    return VectorSets(torch.cat(own), tuple(count for each in counts for count in each))


def gather_values(value: T) -> list[T]:
    """The values of all ranks, in rank order: anything that can be pickled and is small, whatever its device."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)  # others may hold the same tensor
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
