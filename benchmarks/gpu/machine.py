"""The machine: what it is, how fast it multiplies, and clocks that wait for it."""

from __future__ import annotations

import gc
import inspect
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from .record import NotRunHereError


PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "sentence-transformers",
    "triton",
    "flash-attn",
    "liger-kernel",
    "bitsandbytes",
    "llamafactory",
)
GIB = 2**30


def describe_machine(device: str) -> dict[str, Any]:
    """Device and versions, for every record."""
    import torch

    found: dict[str, Any] = {"device": "CPU (a rehearsal: no figure counts)", "versions": {}}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["memory_gib"] = round(properties.total_memory / GIB, 1)
        found["capability"] = list(torch.cuda.get_device_capability(0))
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found["versions"][package] = version(package)
        except PackageNotFoundError:
            found["versions"][package] = "not installed"
    return found


def kernel_signature() -> str:
    """What torch's own flash kernel takes here; it has changed between releases."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "none"
    return str(inspect.signature(varlen_attn))


def require(package: str) -> None:
    """Stop a part that needs a package which is not installed."""
    if find_spec(package) is None:
        raise NotRunHereError(f"{package} is not installed")


def synchronize(device: str) -> None:
    """Wait for all work that the device was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, repeats: int, warm_up: int = 1) -> float:
    """The median time of a piece of work, until the device is done with it."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_gib(work: Callable[[], Any], device: str) -> float:
    """The most memory that tensors held during a piece of work, weights included; 0 on a CPU."""
    import torch

    if device != "cuda":
        work()
        return 0.0
    gc.collect()  # what an earlier side of a comparison left in circles of references
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / GIB


def matmul_peak(device: str, size: int, repeats: int = 20) -> float:
    """Operations a second of a product of two random bfloat16 matrices, the fastest of several medians."""
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = min(seconds_of(lambda: a @ b, device, repeats, warm_up=3) for _ in range(2))
    return 2 * size**3 / seconds


def copy_rate(device: str, gib: float) -> float:
    """Bytes a second of a copy on the device, read and written."""
    import torch

    source = torch.randn(int(gib * GIB) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, repeats=5)


def free_gib(device: str) -> float:
    """Memory that can still be had."""
    import torch

    return torch.cuda.mem_get_info()[0] / GIB if device == "cuda" else 0.0
