"""The GPU section of docs/benchmarks.md, from the files of the steps. Rehearsals are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .record import read_record
from .steps import STEPS


NOTHING = "Not measured yet: no GPU was at hand. The command and all its steps were rehearsed on a CPU.\n"


def describe_all(folder: Path) -> str:
    """A table of what was shown to be right, and one of figures beside their aims."""
    records = [record for step in STEPS if (record := read_record(folder / f"{step.name}.json")) is not None]
    if not records:
        return f"\n{NOTHING}\n"
    right = ["| step | outcome | checks | not run |", "| --- | --- | --- | --- |", *map(_outcome, records)]
    figures = ["| figure | value | aim | reached |", "| --- | --- | --- | --- |"]
    figures += [_figure(figure) for record in records for figure in record["figures"]]
    blocks = [right, figures] if len(figures) > 2 else [right]
    tables = "\n\n".join("\n".join(block) for block in blocks)
    return f"\n{tables}\n\n{_origin(records)}\n\n"


def _outcome(record: dict[str, Any]) -> str:
    passed = sum(check["passed"] for check in record["checks"])
    status = record["status"] if record["status"] == "passed" else f"**{record['status']}**"
    reason = f": {record['reason']}" if record["reason"] else ""
    missing = "; ".join(sorted({part["reason"] for part in record["not_run"]}))
    return f"| {record['title']} | {status}{reason} | {passed} of {len(record['checks'])} | {missing} |"


def _figure(figure: dict[str, Any]) -> str:
    aim = reached = ""
    for key, sign in (("at_least", "≥"), ("at_most", "≤")):
        if figure[key] is not None:
            aim, reached = f"{sign} {figure[key]:g} {figure['unit']}", "yes" if figure["reached"] else "**no**"
    return f"| {figure['what']} | {figure['value']:,.4g} {figure['unit']} | {aim} | {reached} |"


def _origin(records: list[dict[str, Any]]) -> str:
    """Every machine and date that a record comes from."""
    lines = []
    for record in records:
        machine = record["machine"]
        versions = machine.get("versions", {})
        named = [f"{package} {number}" for package, number in versions.items() if number != "not installed"]
        line = f"Run on {record['date'][:10]}: {machine.get('device', 'unknown')}, {', '.join(named)}."
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)
