"""Peak memory of this process above what it held before (Linux)."""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path


MIB = 2**20


class PeakMemory:
    """Resident memory above the baseline; the kernel keeps the highest value itself."""

    def __init__(self) -> None:
        self.baseline = 0
        self.start()

    def start(self) -> None:
        """What the process holds now becomes the baseline."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed while loading must not serve the step for nothing
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present value
        self.baseline = _status("VmRSS")

    def above_baseline(self) -> float:
        """The peak since `start`, in MiB."""
        return (_status("VmHWM") - self.baseline) / MIB

    @staticmethod
    def total() -> float:
        """The peak of the whole process, in MiB."""
        return _status("VmHWM") / MIB


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/self/status has no field {field}: peak memory is read on Linux only.")


class OwnMemory:
    """The most that a process held itself while a block ran: pages of memory-mapped files, which the kernel takes back
    whenever it likes, do not count. Looked at every few milliseconds."""

    INTERVAL = 0.02  # seconds

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> OwnMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """The peak so far, in MiB."""
        return self.peak / MIB

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, _status("RssAnon"))
            if self._ended.wait(self.INTERVAL):
                return
