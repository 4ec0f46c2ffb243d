"""What a table of flags is: one row for each flag of another tool, with our option or the reason why there is none.

The tables are data: `convert.py` applies them, `render_tool` prints them for the pages about moving here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


Settings = Mapping[str, Any]
"""Flags of the other tool, by name, with their values."""

Values = dict[str, Any]
"""Options of a recipe."""


@dataclass(frozen=True)
class Flag:
    """What becomes of one flag."""

    name: str
    ours: tuple[str, ...] = ()
    """The options of a recipe that say the same; none: there is no counterpart."""

    convert: Callable[[Any, Settings], Values] | None = None
    """From the flag's value (and all flags) to those options; None: the value is taken over as it is."""

    says: str = ""
    """How the value changes; why there is no counterpart."""

    def values(self, value: Any, settings: Settings) -> Values:
        """The options that this flag becomes."""
        if self.convert is not None:
            return self.convert(value, settings)
        return dict.fromkeys(self.ours, value)


@dataclass(frozen=True)
class Tool:
    """Another tool."""

    key: str
    """Its name on the command line."""

    title: str
    flags: tuple[Flag, ...]

    implied: Callable[[Settings], Values]
    """What the tool does without being asked and a recipe has to say. Flags win over it."""

    remarks: tuple[str, ...] = ()
    """What else differs; written into the header of a converted recipe."""

    def find(self, name: str) -> Flag | None:
        """The row of a flag; later rows win."""
        return {flag.name: flag for flag in self.flags}.get(name)


def names_in(text: str) -> tuple[str, ...]:
    """Names that are written one after another."""
    return tuple(text.split())


def same(*names: str) -> tuple[Flag, ...]:
    """Flags that have the same name and meaning here."""
    return tuple(Flag(name, (name,)) for name in names)


def renamed(name: str, ours: str, says: str = "") -> Flag:
    """A flag that has another name here."""
    return Flag(name, (ours,), says=says)


def mapped(name: str, ours: str, words: Mapping[Any, Any], says: str = "") -> Flag:
    """A flag whose values have other names here; a value without a counterpart is left out."""
    shown = says or ", ".join(f"`{theirs}` → `{_shown(value)}`" for theirs, value in words.items())

    def convert(value: Any, settings: Settings) -> Values:
        return {ours: words[value]} if value in list(words) else {}

    return Flag(name, (ours,), convert, shown)


def computed(name: str, ours: Iterable[str], convert: Callable[[Any, Settings], Values], says: str) -> Flag:
    """A flag whose value is computed."""
    return Flag(name, tuple(ours), convert, says)


def nothing(why: str, *names: str) -> tuple[Flag, ...]:
    """Flags without a counterpart."""
    return tuple(Flag(name, says=why) for name in names)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
