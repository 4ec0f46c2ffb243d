"""Seam: `llamafactory-cli`, which starts torchrun, and its usage text."""

from __future__ import annotations

import os
import sys
from typing import Any

from ..stages.registry import load_registry
from . import contract


def apply(launcher: Any) -> None:
    """List the new stages in the usage text; let FORCE_TORCHRUN=1 start one process where there is no accelerator."""
    host_launch = contract.attribute(launcher, "launch")
    usage: str = contract.attribute(launcher, "USAGE")
    contract.check_signature(host_launch)

    def launch() -> None:
        if sys.argv[1:2] == ["train"] and is_torchrun_without_device():
            os.environ.setdefault("NPROC_PER_NODE", "1")  # the host would ask torchrun for 0 processes
        host_launch()

    launcher.launch = launch
    launcher.USAGE = extend_usage(usage)


def is_torchrun_without_device() -> bool:
    """Whether the host is about to start torchrun on a machine that has only a CPU."""
    from llamafactory.extras.misc import get_device_count, is_env_enabled

    return is_env_enabled("FORCE_TORCHRUN") and get_device_count() == 0


def extend_usage(usage: str) -> str:
    """The host's usage box with one more line that names the stages of plugins."""
    *lines, last_rule = usage.splitlines()
    width = len(last_rule)
    rows = [f"|   more values of `stage:`: {', '.join(load_registry().stages) or 'none'}"]
    rows.append("|   llamafactory-embed -h: check recipes and the installation")
    return "\n".join([*lines, *(row.ljust(width - 1) + "|" for row in rows), last_rule])
