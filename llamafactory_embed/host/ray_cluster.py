"""Ray without an endless wait: the host asks for 10 CPUs a worker, which a small cluster never has to give."""

from __future__ import annotations

from typing import Any


CPUS_PER_WORKER = 10  # fixed in the host's `get_placement_group`


def check_cluster(ray_args: Any) -> None:
    """Start Ray as the host would, and refuse a cluster that could only wait for ever."""
    import ray

    if not ray.is_initialized():
        ray.init(**(ray_args.ray_init_kwargs or {}))

    workers = ray_args.ray_num_workers
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers * CPUS_PER_WORKER:
        ray.shutdown()
        raise ValueError(
            f"LLaMA-Factory reserves {CPUS_PER_WORKER} CPUs for each Ray worker, but the cluster has {cpus} for "
            f"`ray_num_workers: {workers}`: add nodes, or give a local cluster more logical CPUs with "
            f"`ray_init_kwargs: {{num_cpus: {workers * CPUS_PER_WORKER}}}`."
        )


def fit_placement_group(devices: int) -> int:
    """How many bundles to reserve. The host reserves one for each device of the cluster; where the only devices are
    CPUs that would be ten times more CPUs than there are."""
    from llamafactory.extras.misc import get_device_name

    return devices // CPUS_PER_WORKER if get_device_name() == "cpu" else devices
