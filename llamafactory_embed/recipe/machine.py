"""What would stop a run on this machine, or today, although its recipe is right."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..host.vocabulary import is_switched_on, list_checkpoint_files
from ..processor import CODE_GENERATOR, WITHOUT_BF16, has_bf16, missing_for_compilation
from .report import Report


def remark_on_machine(report: Report, options: dict[str, Any]) -> None:
    """Remark on GPUs, packages and folders that the options need and that are missing or in use."""
    import torch
    from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

    on_cpu = options.get("use_cpu", False)
    for name, is_there in (
        ("bf16", on_cpu or is_torch_bf16_gpu_available()),
        ("bf16_full_eval", on_cpu or is_torch_bf16_gpu_available()),
        ("pure_bf16", is_torch_bf16_gpu_available()),
        ("fp16", torch.accelerator.is_available()),
        ("tf32", is_torch_tf32_available()),
    ):
        if options.get(name) and not is_there:
            report.remark(name, f"no GPU for `{name}: true`, the run would stop.")
    if on_cpu and options.get("bf16") and has_bf16() is False:
        report.remark("bf16", WITHOUT_BF16)
    remark_on_compiler(report, options)

    for name, package in (("quantization_bit", "bitsandbytes"), ("deepspeed", "deepspeed")):
        if options.get(name) and not is_installed(package):
            report.remark(name, f"`{name}` needs {package}, which is not installed.")
    if options.get("deepspeed") and not is_switched_on("FORCE_TORCHRUN") and torch.accelerator.device_count() < 2:
        report.remark("deepspeed", "start the run with FORCE_TORCHRUN=1.")

    model = options["model_name_or_path"]
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).exists():
        report.remark("model_name_or_path", f"there is no folder {model} yet.")

    output = Path(options.get("output_dir") or "")
    if options.get("do_train") and options.get("output_dir") and not options.get("overwrite_output_dir"):
        if any(output.glob("checkpoint-*")):
            report.remark("output_dir", f"the run would resume from the last checkpoint in {output}.")
        elif any((output / name).is_file() for name in list_checkpoint_files()):
            report.remark("output_dir", f"{output} holds a model: the run needs `overwrite_output_dir: true`.")


def remark_on_compiler(report: Report, options: dict[str, Any]) -> None:
    """Remark on what is missing to compile the layers, for the device that the run would use."""
    import torch

    if not any(options.get(name) for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")):
        return
    on_cpu = options.get("use_cpu", False) or not torch.cuda.is_available()
    backend = options.get("torch_compile_backend") or CODE_GENERATOR
    missing = missing_for_compilation("cpu" if on_cpu else "cuda", backend)
    if missing is not None:
        report.remark("torch_compile", f"`torch_compile: true` needs {missing}.")


def remark_on_packages(report: Report, packages: Iterable[str]) -> None:
    """Remark on packages that the host would require; `remark_on_machine` deals with DeepSpeed."""
    for package in packages:
        if package != "deepspeed" and not is_installed(package):
            report.remark(None, f"{package} is needed and not installed.")


def is_installed(package: str) -> bool:
    """Whether a distribution of that name is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
