"""What is wrong with a recipe, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Something wrong in a recipe, or a remark about it."""

    path: Path
    line: int | None
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f':{self.line}'}: {self.sentence}"


@dataclass
class Report:
    """Problems of one recipe, and remarks about it."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    lines: dict[Any, int] = field(default_factory=dict)
    """Option → its line."""
    unquoted: dict[Any, str] = field(default_factory=dict)
    """Option → its value as it is written, where it is one plain word."""

    def problem(self, option: object, sentence: str, line: int | None = None) -> None:
        """Record what has to be changed."""
        problem = Problem(self.path, line or self.lines.get(option), sentence)
        if problem not in self.problems:
            self.problems.append(problem)

    def remark(self, option: object, sentence: str) -> None:
        """Record what would not work on this machine, or not now."""
        self.remarks.append(Problem(self.path, self.lines.get(option), f"here: {sentence}"))
