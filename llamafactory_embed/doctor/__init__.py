"""`llamafactory-embed doctor`: can the plugin work in this environment, and what could speed it up?

Everything is tried: the plugin is looked for in a fresh process that imports LLaMA-Factory, and every attention
back-end is run, forward and backward, and compared with eager.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from .attention import examine_attention
from .environment import examine_devices, examine_packages
from .finding import PACKAGE, Finding, describe_error, describe_finding
from .plugin import examine_plugin


__all__ = ["SECTIONS", "Finding", "add_arguments", "run"]

SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Packages": examine_packages,
    "Plugin, in a fresh process": examine_plugin,
    "Attention, forward and backward against single texts through eager": examine_attention,
    "Devices": examine_devices,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the doctor looks at everything."""


def run(arguments: argparse.Namespace) -> int:
    """Print the report, section by section; 1 when the plugin cannot work here."""
    failures = []
    for title, examine in SECTIONS.items():
        print(title, flush=True)
        for finding in examine_safely(title, examine):
            print(describe_finding(finding), flush=True)
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
    """Turn a section that fails into a finding."""
    try:
        yield from examine()
    except Exception as error:  # the point of this command is to say what fails
        yield Finding(title.split(",")[0].lower(), "FAIL", describe_error(error))
