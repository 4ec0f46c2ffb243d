"""Bad rows: found while reading, told all at once, with file and line."""

from __future__ import annotations

import logging


logger = logging.getLogger(__name__)

MOST_PROBLEMS_TOLD = 20


class BadRowError(ValueError):
    """One row that cannot be used; its message says why, the reader adds file and line."""


class BadRows:
    """Collects bad rows over all data sets; either they stop the run together or they are counted and skipped."""

    def __init__(self, skip: bool = False, known_columns: str = "", can_skip: bool = True) -> None:
        """`can_skip` says whether there is an option `skip_bad_rows` that the user may set."""
        self.skip = skip
        self.known_columns = known_columns
        self.advice = "repair them or set `skip_bad_rows: true`" if can_skip else "repair them"
        self.count = 0
        self.told: list[str] = []

    @property
    def full(self) -> bool:
        """Whether enough problems are known to stop reading; never so when bad rows are skipped."""
        return not self.skip and self.count >= MOST_PROBLEMS_TOLD

    def add(self, file: str, line: int, problem: str) -> None:
        """Note one bad row."""
        self.count += 1
        if len(self.told) < MOST_PROBLEMS_TOLD:
            self.told.append(f"{file}:{line}: {problem}")

    def finish(self) -> None:
        """Raise one ValueError with every problem found, or log how many rows were skipped."""
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
