"""Seam: `llamafactory-cli`, which starts torchrun, and its usage text."""

from __future__ import annotations

import os
import subprocess
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
        try:
            host_launch()
        except subprocess.CalledProcessError as error:  # torchrun's, which has said all that a traceback could
            print(
                "A process of this run has ended with an error or was killed (torchrun ended with "
                f"{error.returncode}): torchrun names it above, and before that stands what it said. The same recipe "
                "goes on from the last whole checkpoint.",
                file=sys.stderr,
            )
            sys.exit(error.returncode)

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
