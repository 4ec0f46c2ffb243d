"""What a process holds and has done, looked at every few seconds."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from llamafactory_embed.files import write_json


MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    seconds: float
    """Since the work began."""
    memory: float
    """Resident and its own, in MiB: pages of mapped files come and go as the machine needs them."""
    handles: int
    """Open files, sockets and pipes."""
    threads: int
    processes: int
    """Its children, and theirs."""
    done: int
    """How many rows, texts or requests so far."""
    cpu: float
    """Seconds of a core so far, those of children that have ended included."""


class Progress:
    """How much a process has done, as eight bytes of a file: another one may read them at any moment."""

    def __init__(self, path: Path) -> None:
        self.done = 0
        self._file = path.open("wb", buffering=0)
        self.set(0)

    def add(self, count: int) -> None:
        self.set(self.done + count)

    def set(self, done: int) -> None:
        self.done = done
        self._file.seek(0)
        self._file.write(struct.pack("<Q", done))


def read_progress(path: Path) -> int:
    return int(struct.unpack("<Q", path.read_bytes())[0])


def look_at(process: psutil.Process, progress: Path, start: float) -> Sample:
    """The process now; psutil.NoSuchProcess when it has ended."""
    with process.oneshot():
        times, memory = process.cpu_times(), process.memory_info()
        return Sample(
            seconds=round(time.monotonic() - start, 1),
            memory=round((memory.rss - getattr(memory, "shared", 0)) / MIB, 2),  # only Linux tells them apart
            handles=process.num_fds(),
            threads=process.num_threads(),
            processes=len(process.children(recursive=True)),
            done=read_progress(progress),
            cpu=round(times.user + times.system + times.children_user + times.children_system, 2),
        )


def write_samples(path: Path, samples: Mapping[str, Sequence[Sample]], about: dict[str, Any]) -> None:
    """The samples of all works as tables, with what else is to be known of them."""
    columns = [each.name for each in fields(Sample)]
    tables = {name: [list(asdict(each).values()) for each in rows] for name, rows in samples.items()}
    write_json(path, {**about, "columns": columns, "samples": tables}, indent=None)


def read_samples(path: Path) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
    """The other way round."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tables, columns = content.pop("samples"), content.pop("columns")
    return {
        name: [Sample(**dict(zip(columns, row, strict=True))) for row in rows] for name, rows in tables.items()
    }, content
