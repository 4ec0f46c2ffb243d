"""Ranks of one process group as threads of this process.

What they exchange is checked as NCCL would: all ranks must run the same collectives, on tensors that lie on the
accelerator. A rank that would wait forever fails at once. There is no accelerator here, so that one is played: tensors
on it are `OnAccelerator`, as is all that is computed from them, moved to a device or made on one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


T = TypeVar("T")


class OnAccelerator(Tensor):
    """A tensor on the accelerator that these tests play."""


class Placement(TorchFunctionMode):
    """Keeps track of which tensors lie on the accelerator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        device = (kwargs or {}).get("device")
        if function is Tensor.to and len(args) > 1:
            device = args[1]
        if function is Tensor.cpu:
            return result.as_subclass(Tensor)
        return result.as_subclass(OnAccelerator) if isinstance(device, torch.device) else result


def move_to_accelerator(module: nn.Module) -> None:
    """Put the parameters of a module on the accelerator."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            moved = nn.Parameter(parameter.detach().as_subclass(OnAccelerator), parameter.requires_grad)
            part.register_parameter(name, moved)


class Ranks:
    """A group of ranks; `collectives` are those that each rank has run."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = count
        self.collectives: list[list[str]] = [[] for _ in range(count)]
        self._of_thread = threading.local()
        self._changed = threading.Condition()
        self._arrived: dict[int, tuple[str, Any]] = {}
        self._values: list[Any] = []
        self._rounds = 0
        self._ended: set[int] = set()
        monkeypatch.setattr(dist, "is_initialized", self._is_rank)
        monkeypatch.setattr(dist, "get_rank", lambda group=None: self._rank())
        monkeypatch.setattr(dist, "get_world_size", lambda group=None: count if self._is_rank() else 1)
        monkeypatch.setattr(dist, "all_gather", self._all_gather)
        monkeypatch.setattr(dist, "all_reduce", self._all_reduce)
        monkeypatch.setattr(dist, "all_gather_object", self._all_gather_object)
        monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: count if self._is_rank() else 1))

    def run(self, work: Callable[[int], T]) -> list[T]:
        """Call `work` with the number of each rank, all at the same time, and return what they give back."""
        results: dict[int, T] = {}
        errors: list[BaseException] = []
        self._ended.clear()

        def run_rank(rank: int) -> None:
            self._of_thread.rank = rank
            try:
                with Placement():
                    results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
            with self._changed:
                self._ended.add(rank)
                self._changed.notify_all()

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(self.count)]

    def in_lockstep(self, module: nn.Module) -> None:
        """Let every forward of a module wait for the other ranks', as an engine does that gathers parameters."""
        module.register_forward_pre_hook(lambda *_: self._exchange("forward", None) and None)

    def _is_rank(self) -> bool:
        return hasattr(self._of_thread, "rank")

    def _rank(self) -> int:
        return getattr(self._of_thread, "rank", 0)

    def _exchange(self, name: str, value: Any) -> list[Any]:
        """The values that all ranks bring to their next collective."""
        rank = self._rank()
        self.collectives[rank].append(name)
        with self._changed:
            self._arrived[rank] = (name, value)
            rounds = self._rounds
            if len(self._arrived) == self.count:
                self._values = [self._arrived[each] for each in range(self.count)]
                self._arrived.clear()
                self._rounds += 1
                self._changed.notify_all()
            while self._rounds == rounds:
                assert not self._ended, f"rank {rank} waits in {name} for rank {min(self._ended)}, which has ended"
                self._changed.wait()
            values = self._values
        names = [each for each, _ in values]
        assert len(set(names)) == 1, f"the ranks are in different collectives: {names}"
        return [each for _, each in values]

    def _check_place(self, tensor: Tensor, name: str) -> None:
        is_backward = torch._C._current_graph_task_id() >= 0  # gradients, which lie where their tensors do
        assert is_backward or isinstance(tensor, OnAccelerator), (
            f"No backend type associated with device type cpu: {name}"
        )

    def _all_gather(self, parts: list[Tensor], tensor: Tensor, group: Any = None) -> None:
        self._check_place(tensor, "all_gather")
        with torch.no_grad():
            values = self._exchange("all_gather", tensor.detach().clone())
            for part, value in zip(parts, values, strict=True):
                assert part.shape == value.shape, f"all_gather of shapes {[tuple(each.shape) for each in values]}"
                part.copy_(value)

    def _all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        self._check_place(tensor, "all_reduce")
        with torch.no_grad():
            values = torch.stack(self._exchange("all_reduce", tensor.detach().clone()))
            tensor.copy_(values.max(dim=0).values if op == dist.ReduceOp.MAX else values.sum(dim=0))

    def _all_gather_object(self, values: list[Any], value: Any, group: Any = None) -> None:
        values[:] = self._exchange("all_gather_object", value)
