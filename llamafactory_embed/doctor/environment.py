"""Versions, against those that this package's metadata and the host's declare, and devices."""

from __future__ import annotations

import contextlib
import importlib
import io
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ..processor import has_bf16
from .finding import PACKAGE, Finding, describe_error


# Dependencies of the host that training uses; its metadata says in which versions.
HOST_PACKAGES = ("accelerate", "datasets", "trl", "gradio")

# torchvision 0.21 was built for torch 2.6, and they went in step ever since.
TORCHVISION_MINOR_AHEAD = 15

# torchaudio went in step with torch up to 2.11, its last release, which also works with every later torch.
LAST_TORCHAUDIO_MINOR = 11


def examine_packages() -> Iterator[Finding]:
    """Versions against the ranges that this package's metadata, and the host's, declare."""
    yield Finding("python", "ok", platform.python_version())
    needed, extras = read_requirements()
    for requirement in needed:
        yield examine_needed(requirement)
    yield from examine_torch_family()
    for extra, requirements in extras.items():
        for requirement in requirements:
            yield examine_optional(requirement, extra)


def read_requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What we need (ours and, for a few packages, the host's), and what each of our extras is made of."""
    needed: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, requires(PACKAGE) or []):
        clauses = str(requirement.marker or "").split("extra == ")
        if len(clauses) == 1:
            needed.append(requirement)
        elif (extra := clauses[1].strip("\"' ")) != "dev":
            extras.setdefault(extra, []).append(requirement)

    if installed_version("llamafactory") is not None:
        host_needs = {
            requirement.name: requirement for requirement in map(Requirement, requires("llamafactory") or [])
        }
        needed += [host_needs[name] for name in HOST_PACKAGES if name in host_needs]
    needed.sort(key=lambda requirement: requirement.name != "llamafactory")  # the host first
    return needed, extras


def installed_version(name: str) -> str | None:
    """A distribution's version, None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def examine_needed(requirement: Requirement) -> Finding:
    """A package that the plugin cannot do without."""
    advice = f"pip install '{requirement.name}{requirement.specifier}'"
    installed = installed_version(requirement.name)
    if installed is None:
        return Finding(requirement.name, "FAIL", "not installed", advice)
    if not is_in(requirement.specifier, installed):
        return Finding(requirement.name, "FAIL", f"{installed} is not supported", advice)
    return Finding(requirement.name, "ok", installed)


def examine_optional(requirement: Requirement, extra: str) -> Finding:
    """A package that one of our extras brings."""
    advice = f"pip install '{PACKAGE}[{extra}]'"
    installed = installed_version(requirement.name)
    if installed is None:
        return Finding(requirement.name, "none", advice=advice)
    if not is_in(requirement.specifier, installed):
        return Finding(requirement.name, "warn", f"{installed} is not {requirement.specifier}", advice)
    if requirement.name == "deepspeed":  # its import compiles, looks for CUDA, and fails in many ways
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module("deepspeed")
        except Exception as error:
            return Finding(requirement.name, "warn", f"{installed} cannot be imported: {describe_error(error)}")
    return Finding(requirement.name, "ok", installed)


def is_in(specifier: SpecifierSet, installed: str) -> bool:
    """Whether a version is in range; a pre-release counts like a release."""
    return specifier.contains(installed, prereleases=True)


def examine_torch_family() -> Iterator[Finding]:
    """torchvision and torchaudio must be built for the installed torch, or importing the host fails."""
    torch_version = installed_version("torch")
    if torch_version is None:
        return
    release = Version(torch_version)
    partners = {
        "torchvision": f"0.{release.minor + TORCHVISION_MINOR_AHEAD}",
        "torchaudio": f"{release.major}.{min(release.minor, LAST_TORCHAUDIO_MINOR)}",
    }
    for name, release_line in partners.items():
        installed = installed_version(name)
        if installed is None:
            continue  # reported above
        if f"{Version(installed).major}.{Version(installed).minor}" != release_line:
            advice = f"pip install '{name}=={release_line}.*'"
            yield Finding(
                f"{name} with torch", "FAIL", f"{installed} does not belong to torch {torch_version}", advice
            )
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            advice = f"install torch {torch_version} and {name} {installed} from the same index"
            yield Finding(f"{name} with torch", "FAIL", describe_error(error), advice)


def examine_devices() -> Iterator[Finding]:
    """Devices to compute on, and back-ends through which processes communicate."""
    import torch
    import torch.distributed as dist

    facts = [platform.machine(), f"{torch.get_num_threads()} threads"]
    bf16_on_cpu = has_bf16()
    if bf16_on_cpu is not None:
        facts.append("bf16" if bf16_on_cpu else "no bf16: keep fp32")
    yield Finding("cpu", "ok", ", ".join(facts))
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        )
        yield Finding("gpu", "none", built, "training runs on the CPU, in fp32")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: use `fp16: true`"
        yield Finding(f"gpu {index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    for backend, is_available in (("gloo", dist.is_gloo_available), ("nccl", dist.is_nccl_available)):
        is_there = dist.is_available() and is_available()
        yield Finding(f"distributed, {backend}", "ok" if is_there else "none")
