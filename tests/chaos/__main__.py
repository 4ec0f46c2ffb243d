"""`python -m tests.chaos [JOB …]`: every fault point of every job, and a table of them."""

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
    arguments = parser.parse_args()

    from tqdm import tqdm

    from .jobs import make_jobs
    from .sweep import sweep

    tqdm.monitor_interval = 0  # no thread that looks at progress bars

    is_sound = True
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.txt")
        print("| work | fault points | gone on from | disk full | lost | seconds |\n|---|---|---|---|---|---|")
        for job in make_jobs(Path(folder), arguments.jobs):
            started = time.monotonic()
            swept = sweep(job, log, arguments.resume_every, arguments.fail_every)
            seconds = time.monotonic() - started
            counts = (swept.points, swept.resumed, swept.refused, len(swept.losses))
            print(f"| {job.name} | {' | '.join(map(str, counts))} | {seconds:.0f} |", flush=True)
            if swept.losses:
                is_sound = False
                print("\n".join(f"  {loss}" for loss in swept.losses[:20]), flush=True)
        if not is_sound:
            Path("chaos.log").write_bytes(log.read_bytes() if log.is_file() else b"")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
