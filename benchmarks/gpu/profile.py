"""A table of kernels of a step: where its time goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from llamafactory_embed.files import write_text


ROWS = 60


@contextlib.contextmanager
def profiled(path: Path, device: str) -> Iterator[None]:
    """Write what ran inside of the block, the longest first. The times of a profiled step are no figures."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        yield
    averages = profiler.key_averages()
    orders = ["self_cpu_time_total"] if device == "cpu" else ["self_device_time_total", "self_cpu_time_total"]
    tables = [averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=90) for order in orders]
    write_text(path, "\n\n".join(tables) + "\n")
