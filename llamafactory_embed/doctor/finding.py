"""The lines of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


PACKAGE = "llamafactory-embed"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "none", "warn", "FAIL"]
    """`none`: an optional thing that is not there; `warn`: does not work, but the plugin works without it."""

    value: str = ""
    advice: str = ""


def describe_finding(finding: Finding) -> str:
    """One line: state, name, value, advice."""
    detail = "  ".join(filter(None, (finding.value, finding.advice)))
    return f"  {finding.state:<5} {finding.name:<24} {detail}".rstrip()


def describe_error(error: BaseException) -> str:
    """Type and first line of a message."""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
