"""`python -m tests.soak [--minutes 60] [works…]`: training, encode, mining and serving side by side for so long, each
on a tiny model. Writes `soak.json` (all samples) and `soak.svg`; exit code 1 if anything grows, slows or is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from .flat import judge
from .picture import draw
from .samples import Sample, look_at, read_progress, read_samples, write_samples
from .works import WORKS


ROOT = Path(__file__).resolve().parents[2]
EVERY = 5.0  # seconds between two looks
WRITTEN_EVERY = 60.0


class Watched:
    """One work in its process, and the samples of it."""

    def __init__(self, name: str, folder: Path, seconds: float) -> None:
        folder.mkdir()
        self.name, self.folder, self.seconds = name, folder, seconds
        self.samples: list[Sample] = []
        self._start = 0.0  # of the work itself, after imports and loading
        self._process: psutil.Process | None = None
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as log:
            self.work = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.works", name, str(folder), str(seconds)],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def look(self) -> bool:
        """Take a sample; False when the work has ended."""
        if self._process is None and (self.folder / "process").exists():
            self._process = psutil.Process(int((self.folder / "process").read_text(encoding="utf-8")))
        progress = self.folder / "progress"
        if self._process is not None and read_progress(progress):
            self._start = self._start or time.monotonic()
            if time.monotonic() - self._start <= self.seconds:  # then it cleans up
                with contextlib.suppress(psutil.Error):  # it has just ended
                    self.samples.append(look_at(self._process, progress, self._start))
        return self.work.poll() is None

    def said(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]


def soak(names: Sequence[str], minutes: float, output: Path) -> int:
    """Run, watch, judge."""
    output.mkdir(parents=True, exist_ok=True)
    is_sound = True
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        works = [Watched(name, Path(folder, name), 60 * minutes) for name in names]
        try:
            watch(works, minutes, output)
        finally:
            for each in works:
                each.work.terminate()
        for each in works:
            if each.work.wait() != 0:
                is_sound = False
                print(f"{each.name} ended with {each.work.returncode}:\n{each.said()}")
    return max(int(not is_sound), *(tell(each.name, each.samples) for each in works))


def watch(works: Sequence[Watched], minutes: float, output: Path) -> None:
    """Samples until all have ended; what there is by then is written every minute."""
    written = time.monotonic()
    while sum(each.look() for each in works):  # each of them is looked at
        if time.monotonic() - written > WRITTEN_EVERY:
            write(works, minutes, output)
            written = time.monotonic()
        time.sleep(EVERY)
    draw(write(works, minutes, output), output / "soak.svg")


def write(works: Sequence[Watched], minutes: float, output: Path) -> dict[str, Sequence[Sample]]:
    """All samples so far, which come back."""
    about: dict[str, Any] = {"minutes": minutes}
    waves = [each.folder / "waves.json" for each in works if each.name == "serve"]
    if waves and waves[0].exists():
        about["waves"] = json.loads(waves[0].read_text(encoding="utf-8"))
    samples: dict[str, Sequence[Sample]] = {each.name: each.samples for each in works}
    write_samples(output / "soak.json", samples, about)
    return samples


def tell(name: str, samples: Sequence[Sample]) -> int:
    """Print the verdict on one work; 1 if something is not flat."""
    try:
        verdicts = judge(samples, has_clients=name == "serve")
    except ValueError as error:
        print(f"{name:8} {error}")
        return 1
    for each in verdicts:
        mark = "flat" if each.is_flat else "NOT FLAT"
        print(f"{name:8} {each.measure:10} {each.level:12.4g} {each.unit:22} {each.change:+10.3g}  {mark}"
              f" (allowed: {each.allowed:.3g})")  # fmt: skip
    return int(not all(each.is_flat for each in verdicts))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"{', '.join(WORKS)} (default: all, side by side)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of each (default: 60)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "saves" / "soak", help="folder of soak.json and soak.svg"
    )
    parser.add_argument("--judge", metavar="FILE", type=Path, help="run nothing; judge and draw an earlier soak.json")
    arguments = parser.parse_args()
    unknown = set(arguments.works) - set(WORKS)
    if unknown:
        parser.error(f"there is no work `{unknown.pop()}`; there are {', '.join(WORKS)}")
    if arguments.judge is not None:
        samples, _ = read_samples(arguments.judge)
        draw(samples, arguments.judge.with_suffix(".svg"))
        return max(tell(name, taken) for name, taken in samples.items())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without the works
    return soak(arguments.works or list(WORKS), arguments.minutes, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
