"""scripts/dependency_report.py: everything that is installed for this package, and what could not be looked up."""

from __future__ import annotations

import importlib.metadata
import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "dependency_report.py"))


def test_dependencies_of_dependencies_are_listed_with_version_and_licence(script: dict[str, Any]) -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in script["licence_table"]()[2:]]
    listed = {name: (version, licence) for name, version, licence in rows}
    assert listed["torch"][0] == importlib.metadata.version("torch")
    assert listed["llamafactory"][1] == "Apache-2.0" or "Apache" in listed["llamafactory"][1]
    assert {"llamafactory-embed", "peft", "safetensors"} <= listed.keys()  # the last is a dependency of others
    assert list(listed) == sorted(listed)


def test_what_could_not_be_looked_up_is_not_called_safe(script: dict[str, Any]) -> None:
    fine = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
    bad = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1", "3"], "aliases": []}]}
    unmended = {"name": "d", "version": "2", "vulns": [{"id": "CVE-2", "fix_versions": []}]}
    told = script["tell_findings"]
    assert told([fine, skipped]) == (
        0, "pip-audit was answered about 1 of 2 distributions and knows 0 vulnerabilities of them.",
    )  # fmt: skip
    code, text = told([fine, skipped, bad, unmended])
    assert code == 1
    assert text.startswith("pip-audit was answered about 3 of 4 distributions and knows 2 vulnerabilities of them.\n")
    assert "| c | 2 | CVE-1 | 2.1, 3 |\n| d | 2 | CVE-2 | no version yet |" in text
