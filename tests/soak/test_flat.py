"""What counts as flat: known lines, with everything that must not tilt them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.soak.flat import WARM_UP, judge, median_slope
from tests.soak.picture import draw
from tests.soak.samples import Progress, Sample, look_at, read_samples, write_samples


MINUTES, EVERY = 60, 5
Change = Callable[[int, Sample], Sample]


def samples(change: Change = lambda _, each: each) -> list[Sample]:
    """An hour of a process at work, a sample every five seconds: memory of 300 to 330 MiB in the saw teeth of a
    garbage collection, a neighbour that takes half of the processor in the second half hour."""
    found, cpu, done = [], 0.0, 0
    for number in range(MINUTES * 60 // EVERY):
        seconds = number * EVERY
        used = EVERY * (0.9 if seconds < 1800 else 0.45)
        cpu, done = cpu + used, done + round(100 * used)
        sample = Sample(seconds, 300 + 30 * (number % 7) / 6, 20 + number % 2, 4, 1, done, cpu)
        found.append(change(number, sample))
    return found


def verdicts(change: Change = lambda _, each: each, has_clients: bool = False) -> dict[str, bool]:
    return {each.measure: each.is_flat for each in judge(samples(change), has_clients)}


def test_a_steady_process_is_flat() -> None:
    assert all(verdicts().values())


CHANGES: dict[str, tuple[str, Change]] = {
    "memory": ("memory", lambda number, each: dataclasses.replace(each, memory=each.memory + 12 * number / 720)),
    "handles": ("handles", lambda number, each: dataclasses.replace(each, handles=each.handles + number // 150)),
    "threads": ("threads", lambda number, each: dataclasses.replace(each, threads=each.threads + number // 300)),
    "processes": ("processes", lambda number, each: dataclasses.replace(each, processes=1 + number // 240)),
    "speed": ("speed", lambda number, each: dataclasses.replace(each, done=round(each.done * (1 - number / 4000)))),
}


@pytest.mark.parametrize("has_clients", [False, True])
@pytest.mark.parametrize(("measure", "change"), CHANGES.values(), ids=CHANGES)
def test_what_grows_or_slows_down_is_found(measure: str, change: Change, has_clients: bool) -> None:
    assert {name for name, is_flat in verdicts(change, has_clients).items() if not is_flat} == {measure}


def test_growth_while_warming_up_is_none() -> None:
    end = WARM_UP * 720
    assert all(verdicts(lambda number, each: dataclasses.replace(each, memory=min(number, end) * 2 + 100)).values())


def test_more_clients_at_a_time_are_no_growth_of_a_server() -> None:
    """Those of a slower machine stay connected for longer, and go in the end."""

    def connect(number: int, each: Sample) -> Sample:
        return dataclasses.replace(each, handles=each.handles + number * (number % 8 > 0))

    assert all(verdicts(connect, has_clients=True).values())
    assert not verdicts(connect)["handles"]


def test_the_change_is_that_of_the_line() -> None:
    (memory, *_) = judge(samples(lambda number, each: dataclasses.replace(each, memory=100 + number * EVERY / 60)))
    assert memory.change == pytest.approx((1 - WARM_UP) * MINUTES, rel=0.01)
    x = np.arange(9.0)
    assert median_slope(x, 3 * x + 1) == 3
    assert median_slope(x, np.where(x == 4, 1000.0, 3 * x)) == 3


def test_too_few_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="too few to say anything"):
        judge(samples()[:8])


def test_a_sample_is_what_the_process_holds(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress")
    progress.add(3)
    progress.add(4)
    before = look_at(psutil.Process(), tmp_path / "progress", 0.0)
    with open(tmp_path / "progress", "rb"):
        after = look_at(psutil.Process(), tmp_path / "progress", 0.0)
    assert after.done == 7
    assert after.handles == before.handles + 1
    assert after.threads >= 1
    assert after.memory > 10


def test_samples_come_back_and_are_drawn(tmp_path: Path) -> None:
    taken = {"train": samples()[:40], "serve": samples()}
    write_samples(tmp_path / "soak.json", taken, {"minutes": 60})
    assert read_samples(tmp_path / "soak.json") == (taken, {"minutes": 60})
    draw(taken, tmp_path / "soak.svg")
    assert (tmp_path / "soak.svg").stat().st_size > 1000
