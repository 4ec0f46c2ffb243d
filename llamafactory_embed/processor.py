"""What this machine's processor and its compilers can do for a training on a CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


CODE_GENERATOR = "inductor"  # the backend of torch.compile that writes programs of its own; others need no compiler

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's

WITHOUT_BF16 = (
    "this processor has no instructions for bfloat16, and torch emulates them many times slower than float32: "
    "leave it out."
)


def names_bf16(cpu_info: str) -> bool:
    """Whether a processor has instructions for bfloat16; without, torch emulates them."""
    return not BF16_FLAGS.isdisjoint(cpu_info.split())


def has_bf16() -> bool | None:
    """Whether this machine's processor has them; None where nobody can be asked (on other systems than Linux)."""
    return names_bf16(CPU_INFO.read_text("utf-8")) if CPU_INFO.is_file() else None


def missing_for_compilation(device: str, backend: str = CODE_GENERATOR) -> str | None:
    """What this machine lacks to compile for a device ("cpu", "cuda"), and how to get it; None if nothing."""
    if backend != CODE_GENERATOR:
        return None
    if device != "cpu":
        return None if importlib.util.find_spec("triton") else "the package triton: `pip install triton`"
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler, and there is no `{compiler}`: install it (`apt install g++`), or name yours in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header files: install them (`apt install python3-dev`)"
    return None


def require_compiler(device: str, backend: str) -> None:
    """Refuse to train where the first step would fail."""
    missing = missing_for_compilation(device, backend)
    if missing is not None:
        raise ValueError(f"`torch_compile: true` needs {missing}; or leave it out.")
