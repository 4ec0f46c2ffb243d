"""The numbers of the original projects on this device: the golden tests, with every tensor they make put there."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ..processes import ROOT
from .machine import require
from .steps import Bench


SHARED = ROOT / "shared" / "golden"  # more cases, where a checkout has them
FEW = "test_losses_golden.py"  # of a rehearsal


class Outcomes:
    """A plugin of pytest that remembers how every test ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.not_collected: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test has a report for each of its phases; what fails or skips in any of them counts once."""
        if report.failed:
            self.failures[report.nodeid] = last_line(report.longreprtext)
        if report.when == "call" or report.skipped or report.failed:
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported, for want of a package."""
        if report.failed:
            self.not_collected[report.nodeid] = last_line(report.longreprtext)


def last_line(text: str) -> str:
    """Where pytest puts the reason."""
    errors = [line for line in text.splitlines() if line.startswith("E ")]
    return (errors or text.splitlines() or ["without a word"])[0].removeprefix("E").strip()


def measure(bench: Bench) -> None:
    """All cases, of the checkout or of `GOLDEN_DIR`."""
    require("pytest")
    if "GOLDEN_DIR" not in os.environ and SHARED.is_dir():
        os.environ["GOLDEN_DIR"] = str(SHARED)
    outcomes = run_tests(ROOT / "tests" / "golden" / (FEW if bench.small else ""), bench.device)
    record = bench.record
    record.fact("cases", os.environ.get("GOLDEN_DIR", "the bundled ones"))
    record.fact("outcomes", dict(outcomes.counts))
    for name, reason in outcomes.failures.items():
        record.check(name, False, reason)
    for name, reason in outcomes.not_collected.items():
        record.skip(name, reason)
    passed = outcomes.counts["passed"]
    record.check("golden tests", passed > 0 and not outcomes.failures, f"{passed} passed")


def run_tests(where: Path, device: str) -> Outcomes:
    """Run tests in this process, whose tensors are made on the device from now on."""
    import pytest

    outcomes = Outcomes()
    torch.set_default_device(device)
    try:
        options = ["-q", "--no-header", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        pytest.main([str(where), f"--rootdir={ROOT}", *options, "--tb=line", "-r", "N"], plugins=[outcomes])
    finally:
        torch.set_default_device(None)
    return outcomes
