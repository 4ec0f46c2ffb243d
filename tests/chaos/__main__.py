"""`python -m tests.chaos [JOB …]`: every fault point of every job, and a table of them.

`python -m tests.chaos matrix`: every stage is killed and goes on, in every way of running it.
`python -m tests.chaos rank`: a rank of torchrun is killed.
`python -m tests.chaos ray`: Ray workers are killed, that mine and that train.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Exit code 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", help="names of jobs; none: all")
    parser.add_argument("--resume-every", type=int, default=1, help="go on from every N-th state that differs")
    parser.add_argument("--fail-every", type=int, default=1, help="a full disk from every N-th call on")
    parser.add_argument("--stages", nargs="*", default=[], help="of the matrix; none: all")
    parser.add_argument("--ways", nargs="*", default=[], help="of the matrix; none: all")
    arguments = parser.parse_args()

    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread that looks at progress bars
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log.txt"
        if arguments.jobs == ["matrix"]:
            from .matrix import run_matrix

            is_sound = run_matrix(folder, log, arguments.stages, arguments.ways)
        elif arguments.jobs == ["rank"]:
            from .kills import kill_a_rank

            is_sound = kill_a_rank(folder, log)
        elif arguments.jobs == ["ray"]:
            from .ray_kills import kill_ray_workers

            is_sound = kill_ray_workers(folder, log)
        else:
            is_sound = sweep_jobs(folder, log, arguments)
        if not is_sound:
            Path("chaos.log").write_bytes(log.read_bytes() if log.is_file() else b"")
    return 0 if is_sound else 1


def sweep_jobs(folder: Path, log: Path, arguments: argparse.Namespace) -> bool:
    """Print a line a job; whether nothing was lost."""
    from .jobs import make_jobs
    from .sweep import sweep

    is_sound = True
    print("| work | fault points | gone on from | disk full | lost | seconds |\n|---|---|---|---|---|---|")
    for job in make_jobs(folder, arguments.jobs):
        started = time.monotonic()
        swept = sweep(job, log, arguments.resume_every, arguments.fail_every)
        counts = (swept.points, swept.resumed, swept.refused, len(swept.losses))
        print(f"| {job.name} | {' | '.join(map(str, counts))} | {time.monotonic() - started:.0f} |", flush=True)
        if swept.losses:
            is_sound = False
            print("\n".join(f"  {loss}" for loss in swept.losses[:20]), flush=True)
    return is_sound


if __name__ == "__main__":
    sys.exit(main())
