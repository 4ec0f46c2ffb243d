"""Every fault point of a job: what a kill there leaves on the disk, and what comes of going on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .jobs import Job, digest_of
from .writing_calls import STOP, WritingCall, trace


@dataclass
class Swept:
    """What was seen. A loss is a sentence about a fault point."""

    job: str
    points: int = 0
    resumed: int = 0
    refused: int = 0
    losses: list[str] = field(default_factory=list)


def run_quietly(work: Callable[[], object], log: Path) -> Callable[[], object]:
    """The work with what it prints in a file; it is run in a fork."""

    def run() -> object:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        return work()

    return run


def sweep(job: Job, log: Path, resume_every: int, fail_every: int) -> Swept:
    """Look at the disk before every writing call of the job. From every `resume_every`-th of the states that differ it
    is killed and goes on; at every `fail_every`-th call the disk is full. 0: from none."""
    swept = Swept(job.name)
    work = run_quietly(job.work, log)
    job.prepare()
    before = job.find_result()
    states: list[int] = []
    seen: list[str | None] = [None]

    def look(call: WritingCall) -> None:
        swept.points += 1
        state = digest_of(job.folder)
        if state != seen[0]:
            states.append(call.place)
            seen[0] = state
        results.setdefault(job.find_result(), call)
        loss = job.find_loss()
        if loss is not None:
            swept.losses.append(f"killed before {call}: {loss}")

    results: dict[str | None, WritingCall] = {}
    if trace(work, job.folder, look) != 0:
        swept.losses.append("the work itself failed")
        return swept
    end = job.find_result()
    swept.losses += [
        f"killed before {call}: a half result" for each, call in results.items() if each not in (before, end)
    ]
    for place in states[::resume_every] if resume_every else []:
        _go_on(job, work, place, end, swept)
    for place in range(0, swept.points, fail_every) if fail_every else []:
        _fill_disk(job, work, place, (before, end), swept)
    return swept


def _go_on(job: Job, work: Callable[[], object], place: int, end: str | None, swept: Swept) -> None:
    job.prepare()
    code = trace(work, job.folder, lambda call: STOP if call.place == place else None)
    again = trace(work, job.folder, lambda call: None)
    swept.resumed += 1
    if code != STOP:
        swept.losses.append(f"{place}: the kill came too late ({code})")
    if again != 0:
        swept.losses.append(f"{place}: going on fails")
    elif job.find_result() != end:
        swept.losses.append(f"{place}: going on ends with another result")


def _fill_disk(
    job: Job, work: Callable[[], object], place: int, sound: tuple[str | None, str | None], swept: Swept
) -> None:
    """From this call on no byte can be written."""
    job.prepare()

    def refuse(call: WritingCall) -> int | None:
        is_growth = call.name in ("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "fallocate")
        return errno.ENOSPC if call.place >= place and is_growth else None

    code = trace(work, job.folder, refuse)
    swept.refused += 1
    loss = job.find_loss()
    if loss is not None:
        swept.losses.append(f"disk full from {place} on: {loss}")
    if job.find_result() not in sound:
        swept.losses.append(f"disk full from {place} on: a half result")
    if code not in (0, 1):
        swept.losses.append(f"disk full from {place} on: the process ends with {code}")
