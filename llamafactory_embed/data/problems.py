"""Bad rows: collected while reading and reported together, each with file and line."""

from __future__ import annotations

import logging
from collections.abc import Sequence


logger = logging.getLogger(__name__)

MOST_PROBLEMS_TOLD = 20


class BadRowError(ValueError):
    """One row that cannot be used; its message says why, the reader adds file and line."""


class BadRows:
    """Collects the bad rows of all data sets, which either stop the run together or are counted and skipped."""

    def __init__(self, skip: bool = False, known_columns: str = "", can_skip: bool = True) -> None:
        """`can_skip` says whether the user has an option `skip_bad_rows`."""
        self.skip = skip
        self.known_columns = known_columns
        self.advice = "repair them or set `skip_bad_rows: true`" if can_skip else "repair them"
        self.count = 0
        self.told: list[str] = []

    @property
    def full(self) -> bool:
        """Whether there are enough problems to stop reading; never so when bad rows are skipped."""
        return not self.skip and self.count >= MOST_PROBLEMS_TOLD

    def add(self, file: str, line: int, problem: str) -> None:
        """Note one bad row."""
        self.count += 1
        if len(self.told) < MOST_PROBLEMS_TOLD:
            self.told.append(printable(f"{file}:{line}: {problem}"))

    def include(self, count: int, told: Sequence[str]) -> None:
        """Note bad rows that were found elsewhere, of which the first are told; no more than enough to stop."""
        self.count += count if self.skip else min(count, MOST_PROBLEMS_TOLD - self.count)
        self.told.extend(told[: MOST_PROBLEMS_TOLD - len(self.told)])

    def finish(self) -> None:
        """Raise one ValueError for all bad rows, or log how many were skipped."""
        if self.count == 0:
            return
        if self.skip:
            logger.warning("`skip_bad_rows`: %d bad rows were skipped, the first at %s", self.count, self.told[0])
            return
        more = " (reading stopped there)" if self.full else ""
        columns = f"\nKnown columns: {self.known_columns}." if self.known_columns else ""
        raise ValueError(
            f"The data has {self.count} bad rows{more}; {self.advice}:\n  " + "\n  ".join(self.told) + columns
        )


def printable(text: str) -> str:
    """The text with half characters (lone surrogates, as a column's name may hold) written out, as `\\ud83d`: logs and
    terminals cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def broken_character(text: str) -> str | None:
    """What keeps a text from being encoded: a lone surrogate, which JSON can hold and no tokenizer can read."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        return f"half a character (U+{surrogate:04X} at position {error.start}), as an emoji cut in two leaves behind"
    return None


def check_characters(text: str, column: str) -> str:
    """The text, if it can be encoded."""
    broken = broken_character(text)
    if broken:
        raise BadRowError(f"`{column}` holds {broken}")
    return text
