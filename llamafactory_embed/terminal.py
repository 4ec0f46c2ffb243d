"""A text in a terminal that changes in place."""

from __future__ import annotations

import shutil
import unicodedata
from types import TracebackType
from typing import TextIO


CLEAR_BELOW = "\x1b[J"


class SettlingText:
    """Writes each text over the one before, after a prefix that is already on the line.

    Leaving the `with` block clears it, so that the finished text can be written as any other.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self.stream = stream
        self.prefix = prefix
        self._lines = 1  # that are on the screen

    def __enter__(self) -> SettlingText:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all but the prefix."""
        self._write(self.prefix, 1)

    def show(self, text: str) -> None:
        """Replace the text. Of one that is higher than the screen, the last lines are shown: a terminal cannot go back
        to lines that have scrolled out."""
        columns, rows = shutil.get_terminal_size()
        lines = wrap(self.prefix + text, columns - 1)[-(rows - 1) :]
        self._write("\n".join(lines), len(lines))

    def _write(self, text: str, lines: int) -> None:
        up = f"\x1b[{self._lines - 1}A" if self._lines > 1 else ""
        self.stream.write(f"{up}\r{CLEAR_BELOW}{text}")
        self.stream.flush()
        self._lines = lines


def wrap(text: str, columns: int) -> list[str]:
    """The lines of a text in a window of that width; characters of East Asia take two columns."""
    lines = []
    for line in text.expandtabs(4).split("\n"):
        row, width = "", 0
        for character in line:
            if not character.isprintable():
                continue
            size = 2 if unicodedata.east_asian_width(character) in "WF" else int(not unicodedata.combining(character))
            if width + size > columns:
                lines.append(row)
                row, width = "", 0
            row += character
            width += size
        lines.append(row)
    return lines
