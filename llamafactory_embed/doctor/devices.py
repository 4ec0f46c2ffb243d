"""Devices: what there is to compute on, and what processes can talk through."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from .finding import Finding


def examine_devices() -> Iterator[Finding]:
    """What there is to compute on, and what processes can talk through."""
    import torch
    import torch.distributed as dist

    yield Finding("cpu", "ok", f"{platform.machine()}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        )
        yield Finding("gpu", "none", built, "training runs on the CPU, in fp32")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: use `fp16: true`"
        yield Finding(f"gpu {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    for backend, is_available in (("gloo", dist.is_gloo_available), ("nccl", dist.is_nccl_available)):
        is_there = dist.is_available() and is_available()
        yield Finding(f"distributed, {backend}", "ok" if is_there else "none")
