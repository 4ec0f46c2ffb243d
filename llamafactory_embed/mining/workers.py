"""The workers that do the jobs of a step: this process, the ranks of torchrun, or Ray. All share the work folder."""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any, Protocol

from tqdm.auto import tqdm

from ..data.retrieval.entries import Entry
from .miner import Miner
from .options import MiningOptions


UNITS = {"embed": "texts", "search": "passages", "select": "rows"}
LIVES = 4  # of a Ray worker, and tries of a job: one that is killed starts again, one that always dies ends the work
LONGEST_STEP = datetime.timedelta(days=30)  # ranks that have finished wait for the others


class Workers(Protocol):
    """Share out the jobs of a step."""

    is_first: bool
    """Whether this process reads the data and writes the result."""

    def wait(self) -> None:
        """Wait until all processes have come here."""

    def do_jobs(self, miner: Miner, step: str) -> None:
        """Do all jobs of a step that are not done yet, and return when all processes are done."""

    def close(self) -> None:
        """Wait for the last time."""


class OneProcess:
    """This process alone."""

    is_first = True

    def wait(self) -> None:
        """Nothing to wait for: all jobs run in this process."""

    def do_jobs(self, miner: Miner, step: str) -> None:
        _do(miner, step, miner.jobs(step), show=True)

    def close(self) -> None:
        """Nothing to wait for: all jobs run in this process."""


class Ranks:
    """The processes of torchrun; each of n takes every n-th job."""

    def __init__(self) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=LONGEST_STEP)
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        self.is_first = self._rank == 0

    def wait(self) -> None:
        """Meet the other ranks at a barrier."""
        import torch.distributed as dist

        dist.barrier()

    def do_jobs(self, miner: Miner, step: str) -> None:
        jobs = miner.jobs(step)
        self.wait()  # no rank begins before all have seen the same list
        _do(miner, step, jobs[self._rank :: self._count], show=self.is_first)
        self.wait()

    def close(self) -> None:
        """Meet the other ranks for the last time."""
        import torch.distributed as dist

        self.wait()
        dist.destroy_process_group()


class RayWorkers:
    """Actors of Ray Data, on this machine or on a cluster whose machines share the work folder."""

    is_first = True

    def __init__(self, count: int) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ValueError(
                "`ray_workers` needs Ray Data, which the extra `ray` brings: pip install 'llamafactory-embed[ray]'."
            ) from error
        self._count = count
        if not ray.is_initialized():
            ray.init()
        resources = ray.cluster_resources()
        cpus, self._gpus = int(resources.get("CPU", 0)), 1 if resources.get("GPU", 0) >= count else 0
        if cpus < count:
            raise ValueError(f"`ray_workers: {count}`: the Ray cluster has {cpus} CPUs; each worker needs one.")

    def wait(self) -> None:
        """Nothing to wait for: only the driver comes here."""

    def do_jobs(self, miner: Miner, step: str) -> None:
        import ray
        from ray.exceptions import RayError

        jobs = miner.jobs(step)
        if not jobs:
            return
        rows = ray.data.from_items([{"job": number} for number in jobs], override_num_blocks=len(jobs))
        done = rows.map_batches(
            _RayWorker,
            fn_constructor_args=(miner.options, miner.entry, step),
            batch_size=1,
            concurrency=min(self._count, len(jobs)),
            num_cpus=1,
            num_gpus=self._gpus,
            max_restarts=LIVES - 1,
            max_task_retries=LIVES - 1,
        )
        logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # would print a traceback, too
        try:
            with _progress(miner, step, jobs) as progress:
                for batch in done.iter_batches(batch_size=1):
                    progress.update(sum(miner.size_of(step, int(number)) for number in batch["job"]))
        except RayError as error:
            raise ValueError(_explain(error, miner, step)) from error
        self._check(miner, step)

    def close(self) -> None:
        """Nothing to wait for; the cluster stays, because others may use it."""

    @staticmethod
    def _check(miner: Miner, step: str) -> None:
        left = miner.jobs(step)
        if left:
            raise ValueError(
                f"`work_folder`: {miner.work.path} lacks the results of {len(left)} jobs that Ray workers did; it "
                "must lie on a disk that all machines share."
            )


class _RayWorker:
    """One actor: its models and indexes stay from job to job."""

    def __init__(self, options: MiningOptions, entry: Entry, step: str) -> None:
        self._miner = Miner(options, entry)
        self._step = step

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["job"]:
            self._miner.do(self._step, int(number))
        return batch


def find_workers(options: MiningOptions) -> Workers:
    """Ray workers if the options ask for them, ranks if torchrun started this process."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if options.ray_workers:
        if ranks > 1:
            raise ValueError("`ray_workers` and torchrun both share out the work; use one of them.")
        return RayWorkers(options.ray_workers)
    return Ranks() if ranks > 1 else OneProcess()


def local_device(options: MiningOptions) -> str | None:
    """The device of this process: under torchrun, each rank gets one of the GPUs, if there are any."""
    import torch

    if options.device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return options.device


def _do(miner: Miner, step: str, jobs: list[int], show: bool) -> None:
    with _progress(miner, step, jobs, show) as progress:
        for number in jobs:
            miner.do(step, number)
            progress.update(miner.size_of(step, number))


def _progress(miner: Miner, step: str, jobs: list[int], show: bool = True) -> tqdm[Any]:
    total = sum(miner.size_of(step, number) for number in jobs)
    return tqdm(total=total, desc=step.capitalize(), unit=f" {UNITS[step]}", disable=not show or not jobs)


def _explain(error: BaseException, miner: Miner, step: str) -> str:
    """What ended the jobs of Ray workers: a sentence of theirs, or that they were killed."""
    from ray.exceptions import RayError

    done = "what is done stays done, and the same command goes on"
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, ValueError) and not isinstance(reason, RayError):
            return str(reason)
        reason = getattr(reason, "cause", None) or reason.__cause__
    words = str(error).strip().partition("\n")[0].rstrip(".")
    return (
        f"A Ray worker ended while it did jobs of `{step}` ({words}), killed by somebody or because its machine had "
        f"no memory left: {len(miner.jobs(step))} of them are left; {done}."
    )
