"""Stops a piece of work before each of its system calls that changes files, so that the test can look at the disk as a
kill at that moment would leave it, kill the process for real, or let the call fail.

The work runs in a fork of this process, which has imported everything: a fault point costs milliseconds. A filter of
the kernel (seccomp) reports the calls; ptrace stops at them. Linux on x86-64.

A fork has one thread. What waits in it for another one, for instance OpenMP for its pool, waits for ever: so that the
process that forks must have no other thread, and is one of its own (`python -m tests.chaos`), not that of pytest.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


IS_POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"

# Calls of x86-64 that change a file or a folder, with the argument that names it: a path, or an open file.
BY_PATH = {
    "open": (2, 0), "rename": (82, 1), "mkdir": (83, 0), "rmdir": (84, 0), "creat": (85, 0), "link": (86, 1),
    "unlink": (87, 0), "symlink": (88, 1), "truncate": (76, 0), "openat": (257, 1), "mkdirat": (258, 1),
    "unlinkat": (263, 1), "renameat": (264, 3), "linkat": (265, 3), "symlinkat": (266, 2), "renameat2": (316, 3),
}  # fmt: skip
BY_FILE = {
    "write": (1, 0), "pwrite64": (18, 0), "writev": (20, 0), "sendfile": (40, 0), "fsync": (74, 0),
    "fdatasync": (75, 0), "ftruncate": (77, 0), "fallocate": (285, 0), "pwritev": (296, 0),
    "copy_file_range": (326, 2),
}  # fmt: skip
NAMES = {number: name for name, (number, _) in (BY_PATH | BY_FILE).items()}
OPENED_TO_WRITE = os.O_CREAT | os.O_TRUNC

# Words of `struct user`, in bytes: the registers that hold arguments, the call and its result.
ARGUMENTS = [8 * word for word in (14, 13, 12, 7, 9, 8)]  # rdi, rsi, rdx, r10, r8, r9
CALL, RESULT = 8 * 15, 8 * 10  # orig_rax, rax

TRACEME, PEEKUSER, POKEUSER, CONT, KILL, SETOPTIONS = 0, 3, 6, 7, 8, 0x4200
OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # forks, vforks, threads, seccomp; the child ends with this process
EVENT_SECCOMP = 7
ALL_KINDS_OF_CHILDREN = 0x40000000  # __WALL

HARMLESS_THREADS = ("jemalloc_bg_thd",)  # of pyarrow; it takes care of forks itself

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class WritingCall:
    """A call that has not been executed yet."""

    place: int
    """Its number among those of the work, from 0."""
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.place} {self.name} {self.path}"


# What to do at a call: nothing, kill the process with this signal (negative), or let the call fail with this errno.
Decision = int | None
STOP = -int(signal.SIGKILL)


def trace(work: Callable[[], object], folder: Path, decide: Callable[[WritingCall], Decision]) -> int:
    """Run `work` in a fork and ask `decide` before every call that changes something below `folder`. Returned is the
    exit code: 0, 1 after an exception, or the negative number of the signal that ended it."""
    require_one_thread()
    child = os.fork()
    if child == 0:
        _run_in_child(work)
    os.waitpid(child, ALL_KINDS_OF_CHILDREN)
    _ptrace(SETOPTIONS, child, 0, OPTIONS)
    _ptrace(CONT, child, 0, 0)
    place = 0
    while True:
        thread, status = os.waitpid(-1, ALL_KINDS_OF_CHILDREN)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                return os.waitstatus_to_exitcode(status)
            continue
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP and status >> 16 == EVENT_SECCOMP:
            call = _read_call(thread, place, folder)
            if call is not None:
                place += 1
                _act(child, thread, decide(call))
        is_event = status >> 16 != 0 or number in (signal.SIGTRAP, signal.SIGSTOP)
        _ptrace(CONT, thread, 0, 0 if is_event else number, may_be_gone=True)


def count_calls(work: Callable[[], object], folder: Path) -> list[WritingCall]:
    """All calls of a work that ends well."""
    calls: list[WritingCall] = []
    code = trace(work, folder, lambda call: calls.append(call))
    assert code == 0, f"the work itself failed ({code})"
    return calls


def require_one_thread() -> None:
    """Refuse to fork where a fork could hang."""
    names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    others = [name for name in names if name not in HARMLESS_THREADS][1:]
    if others:
        raise RuntimeError(
            f"This process has other threads ({', '.join(others)}), and its forks could wait for them for ever: run "
            "`python -m tests.chaos`, which has none."
        )


def _run_in_child(work: Callable[[], object]) -> None:
    code = 1
    try:
        _ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _report_calls()
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report_calls() -> None:
    """Let the kernel stop this process at the calls in `NAMES`; children and threads inherit that."""
    load, equal, give_back = 0x20, 0x15, 0x06
    allow, report = 0x7FFF0000, 0x7FF00000
    numbers = sorted(NAMES)
    program = [(load, 0, 0, 0)]
    program += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(give_back, 0, 0, allow), (give_back, 0, 0, report)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    filter_program = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    assert _libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert _libc.prctl(set_seccomp, filter_mode, ctypes.c_char_p(filter_program), 0, 0) == 0, ctypes.get_errno()


def _read_call(thread: int, place: int, folder: Path) -> WritingCall | None:
    """The call that a thread is about to make, if it changes something below `folder`."""
    name = NAMES.get(_peek(thread, CALL), "")
    if name in BY_FILE:
        descriptor = _peek(thread, ARGUMENTS[BY_FILE[name][1]]) & 0xFFFFFFFF
        try:
            path = os.readlink(f"/proc/{thread}/fd/{descriptor}")
        except OSError:
            return None
    elif name in BY_PATH:
        argument = BY_PATH[name][1]
        if name in ("open", "openat") and not _peek(thread, ARGUMENTS[argument + 1]) & OPENED_TO_WRITE:
            return None
        path = _read_text(thread, _peek(thread, ARGUMENTS[argument]))
        if not os.path.isabs(path):  # in a folder that is open, as when a tree is removed, or in the working folder
            base = _peek(thread, ARGUMENTS[argument - 1]) & 0xFFFFFFFF if name.endswith("at") else 0xFFFFFF9C
            link = "cwd" if base == 0xFFFFFF9C else f"fd/{base}"
            path = os.path.join(os.readlink(f"/proc/{thread}/{link}"), path)
    else:
        return None
    if not Path(path).is_relative_to(folder):
        return None
    return WritingCall(place, name, str(Path(path).relative_to(folder)))


def _act(child: int, thread: int, decision: Decision) -> None:
    if decision is None:
        return
    if decision < 0:
        os.kill(child, -decision)
    else:
        _ptrace(POKEUSER, thread, CALL, -1)  # no such call: the kernel leaves it out
        _ptrace(POKEUSER, thread, RESULT, -decision)


def _read_text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        read = b""
        while b"\0" not in read and len(read) < 4096:
            read += memory.read(min(256, 4096 - (address + len(read)) % 4096))
    return os.fsdecode(read.partition(b"\0")[0])


def _peek(thread: int, offset: int) -> int:
    # The C library returns the word itself, and -1 for an error, too.
    return _libc.ptrace(PEEKUSER, thread, offset, None)


def _ptrace(request: int, thread: int, address: int, data: int, may_be_gone: bool = False) -> None:
    if _libc.ptrace(request, thread, address, data) == -1 and not may_be_gone:
        raise OSError(ctypes.get_errno(), f"ptrace request {request} of {thread}")
