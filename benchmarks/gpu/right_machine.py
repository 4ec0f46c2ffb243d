"""What the machine is and can do: the ceilings beside which all other figures stand."""

from __future__ import annotations

from .machine import copy_rate, free_gib, kernel_signature, matmul_peak
from .steps import Bench


def measure(bench: Bench) -> None:
    """Matrix products, copies, and what torch's flash kernel takes."""
    record = bench.record
    record.fact("torch's flash kernel", kernel_signature())
    record.fact("free GiB", round(free_gib(bench.device), 1))
    size = bench.size(8192, 128)
    record.figure(
        f"product of two {size} x {size} bfloat16 matrices", matmul_peak(bench.device, size) / 1e12, "TFLOP/s"
    )
    gib = bench.size(4.0, 0.01)
    record.figure("copy on the device, read and written", copy_rate(bench.device, gib) / 1e12, "TB/s")
