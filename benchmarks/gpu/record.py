"""What a step has found so far. Each addition is on disk at once, so that a step that is stopped keeps its figures."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamafactory_embed.files import write_json


Status = Literal["running", "passed", "failed", "not run"]


class NotRunHereError(Exception):
    """Raised by what this machine cannot do; its sentence says why."""


@dataclass(frozen=True)
class Aim:
    """Where a figure should lie; written beside it, whether it does or not."""

    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float) -> bool:
        """Whether a value lies there; NaN lies nowhere."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


NO_AIM = Aim()


class Record:
    """The file of one step: checks that passed or failed, figures, what was not run, and where."""

    def __init__(self, path: Path, step: str, title: str, machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "step": step,
            "title": title,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "status": "running",
            "reason": None,
            "seconds": None,
            "machine": machine,
            "checks": [],
            "figures": [],
            "not_run": [],
            "facts": {},
        }
        self.write()

    def write(self) -> None:
        """The whole file as it stands."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content, indent=1)

    def fact(self, name: str, value: Any) -> None:
        """Something about machine or sizes that is neither right nor wrong."""
        self.content["facts"][name] = value
        self.write()

    def figure(self, what: str, value: float, unit: str, aim: Aim = NO_AIM) -> None:
        """A measured number; a missed aim does not make the step fail."""
        aimed = aim != NO_AIM
        self.content["figures"].append(
            {"what": what, "value": value, "unit": unit}
            | dataclasses.asdict(aim)
            | {"reached": aim.reached(value) if aimed else None}
        )
        self.write()

    def check(self, what: str, passed: bool, found: str) -> None:
        """Something that must hold."""
        self.content["checks"].append({"what": what, "passed": passed, "found": found})
        self.write()

    def error(self, what: str, error: float, bound: float) -> None:
        """A difference that must not exceed its bound; NaN does."""
        self.check(what, error <= bound, f"{error:.3g}, allowed {bound:.3g}")

    def skip(self, what: str, reason: str) -> None:
        """A part that this machine cannot run."""
        self.content["not_run"].append({"what": what, "reason": reason})
        self.write()

    def attempt(self, what: str, function: Callable[[], None]) -> None:
        """Run a part; its exception is a failed check, and the parts behind it still run."""
        try:
            function()
        except NotRunHereError as reason:
            self.skip(what, str(reason))
        except Exception as error:  # whatever a kernel, a library or a lack of memory raises is the finding
            first_line = (str(error).splitlines() or [""])[0]
            self.check(what, False, f"{type(error).__name__}: {first_line}")
            self.fact(f"traceback of {what}", traceback.format_exc().splitlines()[-12:])
        gc.collect()  # models in circles of references would hold the device's memory

    def finish(self, seconds: float) -> None:
        """The step is over: it failed where a check did, and was not run where nothing was found."""
        found = self.content["checks"] or self.content["figures"]
        failed = not all(check["passed"] for check in self.content["checks"])
        status: Status = "failed" if failed else "passed" if found else "not run"
        if status == "not run":
            self.content["reason"] = "; ".join(part["reason"] for part in self.content["not_run"]) or "found nothing"
        self.content |= {"status": status, "seconds": round(seconds, 1)}
        self.write()


def read_record(path: Path) -> dict[str, Any] | None:
    """A step's file; None where it has not begun."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def end_record(path: Path, step: str, title: str, status: Status, reason: str) -> None:
    """Close the file of a step that did not come to its own end, or never began. What it had found stays."""
    content = read_record(path) or Record(path, step, title, {}).content
    write_json(path, content | {"status": status, "reason": reason}, indent=1)


def describe_record(content: dict[str, Any]) -> list[str]:
    """A record as lines for a terminal."""
    reason = f": {content['reason']}" if content["reason"] else ""
    seconds = "" if content["seconds"] is None else f", {content['seconds']} s"
    passed = sum(check["passed"] for check in content["checks"])
    lines = [f"{content['step']}: {content['status']}{reason} ({passed} of {len(content['checks'])} checks{seconds})"]
    lines += [f"  FAILED {each['what']}: {each['found']}" for each in content["checks"] if not each["passed"]]
    lines += [f"  {each['what']}: {each['value']:.4g} {each['unit']}{aim_of(each)}" for each in content["figures"]]
    lines += [f"  not run: {each['what']} ({each['reason']})" for each in content["not_run"]]
    return lines


def aim_of(figure: dict[str, Any]) -> str:
    """The aim of a figure with its outcome; empty without one."""
    for key, sign in (("at_least", "≥"), ("at_most", "≤")):
        if figure[key] is not None:
            return f" (aim {sign} {figure[key]:g}: {'reached' if figure['reached'] else 'NOT REACHED'})"
    return ""
