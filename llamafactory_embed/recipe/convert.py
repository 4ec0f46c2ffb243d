"""`llamafactory-embed recipe convert`: what another tool was told, as a recipe."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foreign import BAD_VALUES
from ..hparams.secrets import is_secret_name, secrets_of, without_secrets
from ..hparams.suggestion import suggest
from .conversions import TOOLS
from .conversions.table import Settings, Tool, Values
from .conversions.training_arguments import TRAINING_ARGUMENTS
from .old_files import read_old_file
from .writing import comment_lines, option_lines


@dataclass(frozen=True)
class ConvertedFlag:
    """What became of one flag of the file."""

    name: str
    value: Any
    ours: Values
    remark: str
    """Why there is no counterpart; empty where there is one."""


@dataclass(frozen=True)
class Conversion:
    """A file of another tool, flag by flag, and what its program does without being asked."""

    tool: Tool
    flags: tuple[ConvertedFlag, ...]
    implied: Values
    secrets: Collection[str]
    """Those of the file, its variables included, which stand in no recipe."""

    @property
    def options(self) -> Values:
        """The options of the recipe."""
        options = dict(self.implied)
        for flag in self.flags:
            options |= flag.ours
        return options


def convert_file(path: Path, tool_name: str | None = None) -> str:
    """The text of a recipe."""
    settings = read_old_file(path)
    tool = find_tool(settings, path) if tool_name is None else TOOLS[tool_name]
    return write_conversion(convert_settings(settings, tool), path.name)


def find_tool(settings: Settings, path: Path) -> Tool:
    """The tool whose table knows most of the flags, by those that not every tool has."""
    shared = {flag.name for flag in TRAINING_ARGUMENTS}
    own = {name for name in settings if name not in shared}
    known = {key: sum(tool.find(name) is not None for name in own) for key, tool in TOOLS.items()}
    best = max(known.values())
    candidates = [key for key, count in known.items() if count == best]
    if not own and all(name in shared for name in settings):
        return TOOLS["sentence-transformers"]
    if best == 0 or len(candidates) > 1:
        listed = ", ".join(candidates if best else TOOLS)
        raise ValueError(f"{path} may be of several tools: say with `--from` which one ({listed}).")
    return TOOLS[candidates[0]]


def convert_settings(settings: Settings, tool: Tool) -> Conversion:
    """Apply a tool's table."""
    names = [flag.name for flag in tool.flags]
    flags = []
    for name, value in settings.items():
        flag = tool.find(name)
        if flag is None:
            if name.isupper():  # a variable of the script
                continue
            flags.append(ConvertedFlag(name, value, {}, f"no flag of {tool.title}{suggest(name, names)}"))
            continue
        try:
            ours = {} if is_secret_name(name) else flag.values(value, settings)
        except BAD_VALUES as error:
            raise ValueError(f"`{name}: {reprlib.repr(value)}` is no value of this flag of {tool.title}.") from error
        is_said_elsewhere = bool(flag.ours) and not ours
        remark = "" if ours or is_said_elsewhere else f"has no counterpart: {flag.says}"
        flags.append(ConvertedFlag(name, value, ours, remark))
    said = {name for flag in flags for name in flag.ours}
    try:
        implied = {name: value for name, value in tool.implied(settings).items() if name not in said}
    except BAD_VALUES as error:
        raise ValueError(f"The flags do not go together as {tool.title} reads them ({error}).") from error
    return Conversion(tool, tuple(flags), implied, secrets_of(settings))


def write_conversion(conversion: Conversion, source: str) -> str:
    """The recipe: implied options first, then the flags in the order of the file, each with what became of it. An
    option that two flags set stands where the last of them stands. Secrets are left out."""
    tool, secrets = conversion.tool, conversion.secrets
    lines = comment_lines(
        f"Converted from {source} ({tool.title}) by `llamafactory-embed recipe convert`; not run.",
        *tool.remarks,
    )
    lines += ["", f"### what {tool.title} does without being asked"]
    for name, value in conversion.implied.items():
        lines += option_lines(name, without_secrets(value, secrets))
    lines += ["", f"### {source}, flag by flag"]
    last = {name: flag.name for flag in conversion.flags for name in flag.ours}
    for flag in conversion.flags:
        shown = "(hidden)" if is_secret_name(flag.name) else without_secrets(flag.value, secrets)
        kept = {name: value for name, value in flag.ours.items() if last[name] == flag.name}
        if flag.remark:
            lines += comment_lines(f"{flag.name}: {shown}  {flag.remark}")
        elif not kept:
            lines += comment_lines(f"{flag.name}: {shown}  is said by other lines of this recipe")
        elif kept != {flag.name: flag.value}:
            lines += comment_lines(f"{flag.name}: {shown}")
        for name, value in kept.items():
            lines += option_lines(name, without_secrets(value, secrets))
    return "\n".join(lines) + "\n"
