"""`llamafactory-embed doctor`: can the plugin work in this environment, and what is there to speed it up?

Nothing is taken on trust: the plugin is looked for in a fresh process that imports LLaMA-Factory, and every attention
back-end is run, forward and backward, and compared with eager.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import platform
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version


PACKAGE = "llamafactory-embed"
START_FILE = "llamafactory_embed.pth"

# What the host brings along and training uses; its own metadata says in which versions.
HOST_PACKAGES = ("accelerate", "datasets", "trl", "gradio")

# torchvision 0.21 was built for torch 2.6, and they went in step ever since.
TORCHVISION_MINOR_AHEAD = 15

TEXT_LENGTHS = (5, 1, 9, 3)  # of the packed row that the attention back-ends are given
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # largest difference from eager, relative to its largest value
FRESH_PROCESS_TIMEOUT = 600


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "none", "warn", "FAIL"]
    """`none`: an optional thing that is not there; `warn`: does not work, but the plugin works without it."""

    value: str = ""
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options: a doctor looks at everything."""


def run(arguments: argparse.Namespace) -> int:
    """Print the report, section by section as it is found; 1 when the plugin cannot work here."""
    failures = []
    for title, examine in SECTIONS.items():
        print(title, flush=True)
        for finding in examine_safely(title, examine):
            print(describe(finding), flush=True)
            if finding.state == "FAIL":
                failures.append(finding)
        print()

    if failures:
        reasons = "; ".join(": ".join(filter(None, (each.name, each.value, each.advice))) for each in failures)
        print(f"{PACKAGE} cannot work here: {reasons}", file=sys.stderr)
        return 1
    print(f"{PACKAGE} works here.")
    return 0


def examine_safely(title: str, examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A section that breaks off is a finding as well."""
    try:
        yield from examine()
    except Exception as error:  # the point of this command is to say what fails
        yield Finding(title.split(",")[0].lower(), "FAIL", describe_error(error))


def describe(finding: Finding) -> str:
    """One line: state, name, value, advice."""
    detail = "  ".join(filter(None, (finding.value, finding.advice)))
    return f"  {finding.state:<5} {finding.name:<24} {detail}".rstrip()


def describe_error(error: BaseException) -> str:
    """Type and first line of a message."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__


# --------------------------------------------------------------------------------------------------------------------
# Packages
# --------------------------------------------------------------------------------------------------------------------


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
        "torchaudio": f"{release.major}.{release.minor}",
    }
    for name, wanted in partners.items():
        installed = installed_version(name)
        if installed is None:
            continue  # reported above
        if f"{Version(installed).major}.{Version(installed).minor}" != wanted:
            advice = f"pip install '{name}=={wanted}.*'"
            yield Finding(
                f"{name} with torch", "FAIL", f"{installed} does not belong to torch {torch_version}", advice
            )
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            advice = f"install torch {torch_version} and {name} {installed} from the same index"
            yield Finding(f"{name} with torch", "FAIL", describe_error(error), advice)


# --------------------------------------------------------------------------------------------------------------------
# The plugin, as a fresh process sees it
# --------------------------------------------------------------------------------------------------------------------


def examine_plugin() -> Iterator[Finding]:
    """Whether a new Python process that imports LLaMA-Factory knows our stages."""
    command = [sys.executable, "-P", "-c", "from llamafactory_embed.doctor import tell_about_plugin as tell; tell()"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=FRESH_PROCESS_TIMEOUT)
    if process.returncode != 0:
        cause = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        yield Finding("fresh process", "FAIL", cause, f"pip install --force-reinstall --no-deps {PACKAGE}")
        return

    facts = json.loads(process.stdout.splitlines()[-1])
    if not facts["started"]:
        yield Finding("start file", "FAIL", *explain_missing_start())
        return
    if facts["disabled"]:
        yield Finding("start file", "FAIL", "LLAMAFACTORY_EMBED_DISABLE switches the plugin off", "unset it")
        return

    yield Finding("start file", "ok", f"{START_FILE} is at work")
    if facts["error"]:
        yield Finding("LLaMA-Factory", "FAIL", f"cannot be imported: {facts['error']}")
    elif facts["mismatches"]:
        yield Finding("LLaMA-Factory", "FAIL", " ".join(facts["mismatches"]))
    else:
        yield Finding("LLaMA-Factory", "ok", f"adjusted: {', '.join(facts['seams'])}")
    for name, owner in facts["stages"].items():
        yield Finding(f"stage {name}", "ok", f"from {owner}")
    for name, sentence in facts["problems"].items():
        yield Finding(f"stage {name}", "warn", sentence)
    if not facts["stages"]:
        yield Finding("stages", "warn", "no package registers a stage", f"reinstall {PACKAGE}")


def explain_missing_start() -> tuple[str, str]:
    """Why the start file did not run."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    found = [folder for folder in folders if (Path(folder) / START_FILE).is_file()]
    if found:
        return f"{START_FILE} lies in {found[0]} but did not run", "start Python without -S, -I or -s"
    advice = f"pip install --force-reinstall --no-deps {PACKAGE}"
    return f"{START_FILE} is in none of {', '.join(folders)}", advice


def tell_about_plugin() -> None:
    """Runs in the fresh process: import what our seams adjust, and print as JSON what became of it."""
    autoload = sys.modules.get("llamafactory_embed.autoload")  # only the start file puts it there
    is_waiting = autoload is not None and any(isinstance(each, autoload.SeamFinder) for each in sys.meta_path)
    facts: dict[str, Any] = {"started": autoload is not None, "disabled": not is_waiting}
    if autoload is not None and is_waiting:
        from .host import contract
        from .host.registry import load_registry

        mismatches: list[str] = []
        contract.report = lambda mismatch: mismatches.append(str(mismatch))
        error = None
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                for module in autoload.SEAMS:
                    importlib.import_module(module)
            except BaseException as problem:  # a host that calls sys.exit must not end the report
                error = describe_error(problem)
        registry = load_registry()
        facts |= {
            "seams": list(autoload.SEAMS.values()),
            "mismatches": mismatches,
            "error": error,
            "stages": {name: registry.owner(name) for name in registry.stages},
            "problems": registry.problems,
        }
    print(json.dumps(facts))


# --------------------------------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------------------------------


def examine_attention() -> Iterator[Finding]:
    """Forward and backward of a packed row through a tiny bidirectional Llama, on every back-end and device."""
    import torch

    expected = run_texts_alone()
    has_gpu = torch.cuda.is_available()
    for device in ("cpu", "cuda") if has_gpu else ("cpu",):
        for backend in ("eager", "sdpa"):
            attempt = partial(run_packed, device, backend, torch.float32)
            yield try_kernel(f"{backend}, {device}", expected, attempt)
    if not has_gpu:
        yield Finding("flash_attention_2", "none", "needs a GPU; `flash_attn: auto` and `sdpa` work without")
        return

    package = installed_version("flash-attn")
    kernel = f"flash-attn {package}" if package else "torch's own kernel"
    advice = "" if package else f"faster still: pip install '{PACKAGE}[flash-attn]'"
    attempt = partial(run_packed, "cuda", "flash_attention_2", torch.bfloat16)
    finding = try_kernel("flash_attention_2, cuda", expected, attempt)
    yield replace(finding, value=f"{kernel}: {finding.value}", advice=advice)
    try:
        importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        yield Finding("torch varlen, cuda", "none", advice="pip install 'torch>=2.10'")
    else:
        yield try_kernel("torch varlen, cuda", run_row_by_sdpa(), run_row_by_varlen)


def try_kernel(name: str, expected: list[Any], attempt: Callable[[], list[Any]]) -> Finding:
    """Run twice (the first time compiles and allocates), compare output and gradient, and report the time."""
    import torch

    fatal: Literal["FAIL", "warn"] = "FAIL" if name.startswith(("eager", "sdpa")) else "warn"
    try:
        attempt()
        start = time.perf_counter()
        found = attempt()  # its results are copied to the CPU, so the clock waits for the device
        milliseconds = 1000 * (time.perf_counter() - start)
    except Exception as error:
        return Finding(name, fatal, describe_error(error))

    difference = max(
        float((wanted - got.float()).abs().max() / wanted.abs().max())
        for wanted, got in zip(expected, found, strict=True)
    )
    tolerance = TOLERANCE["float32" if found[0].dtype == torch.float32 else "bfloat16"]
    measured = f"{milliseconds:.0f} ms, off by {difference:.0e}"
    if not difference <= tolerance:  # NaN is not
        return Finding(name, fatal, f"wrong result: {measured}, allowed are {tolerance:.0e}")
    return Finding(name, "ok", measured)


def build_tiny_llama(backend: str) -> Any:
    """A random bidirectional Llama whose weights are large enough for every token to matter, on the CPU in float32."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from attention_patch import patch_attention

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaModel(config)
    patch_attention(model, "bidirectional", backend=backend)  # type: ignore[arg-type]
    return model


def draw(*shape: int, seed: int) -> Any:
    """The same random numbers for every back-end."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_packed(device: str, backend: str, dtype: Any) -> list[Any]:
    """Hidden states and input gradient [T, D] of the texts as one packed row."""
    from attention_patch import packed_inputs

    model = build_tiny_llama(backend).to(device, dtype)
    total = sum(TEXT_LENGTHS)
    tokens = draw(1, total, model.config.hidden_size, seed=1).to(device, dtype).requires_grad_()
    hidden = model(inputs_embeds=tokens, **packed_inputs(TEXT_LENGTHS, device)).last_hidden_state
    hidden.backward(draw(*hidden.shape, seed=2).to(device, dtype))
    return [hidden[0].detach().cpu(), tokens.grad[0].cpu()]


def run_texts_alone() -> list[Any]:
    """The reference: each text in a forward of its own, through eager attention."""
    import torch

    model = build_tiny_llama("eager")
    size = model.config.hidden_size
    tokens = draw(1, sum(TEXT_LENGTHS), size, seed=1).requires_grad_()
    texts = [model(inputs_embeds=text).last_hidden_state for text in tokens.split(TEXT_LENGTHS, dim=1)]
    hidden = torch.cat(texts, dim=1)
    hidden.backward(draw(*hidden.shape, seed=2))
    return [hidden[0].detach(), tokens.grad[0]]


def run_row_by_varlen() -> list[Any]:
    """torch's own variable-length kernel on queries, keys and values [T, heads, head size] of one packed row."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    row = draw(3, sum(TEXT_LENGTHS), 2, 32, seed=3).to("cuda", torch.bfloat16).requires_grad_()
    ends = torch.tensor([0, *TEXT_LENGTHS], dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)
    output = varlen_attn(*row.unbind(), ends, ends, max(TEXT_LENGTHS), max(TEXT_LENGTHS))
    output.backward(draw(*output.shape, seed=4).to("cuda", torch.bfloat16))
    return [output.detach().cpu(), row.grad.cpu()]


def run_row_by_sdpa() -> list[Any]:
    """The reference for `run_row_by_varlen`: text by text in float32."""
    import torch

    row = draw(3, sum(TEXT_LENGTHS), 2, 32, seed=3).requires_grad_()
    texts = [
        torch.nn.functional.scaled_dot_product_attention(*text.transpose(1, 2).unbind()).transpose(0, 1)
        for text in row.split(TEXT_LENGTHS, dim=1)
    ]
    output = torch.cat(texts)
    output.backward(draw(*output.shape, seed=4))
    return [output.detach(), row.grad]


# --------------------------------------------------------------------------------------------------------------------
# Devices
# --------------------------------------------------------------------------------------------------------------------


def examine_devices() -> Iterator[Finding]:
    """What there is to compute on, and what processes can talk through."""
    import torch
    import torch.distributed as dist

    yield Finding("cpu", "ok", f"{platform.machine()}, {torch.get_num_threads()} threads")
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


SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Packages": examine_packages,
    "Plugin, in a fresh process": examine_plugin,
    "Attention, forward and backward against single texts through eager": examine_attention,
    "Devices": examine_devices,
}
