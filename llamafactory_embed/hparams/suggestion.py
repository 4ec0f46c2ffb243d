"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


LONGEST_NAME = 100  # a longer one is no name, and would take long to compare


def nearest(name: object, candidates: Iterable[Any], likeness: float = 0.6) -> Any:
    """The candidate that is most like this name, whatever its case; None where none is close enough."""
    if len(str(name)) > LONGEST_NAME:
        return None
    texts = {str(each).lower(): each for each in candidates}
    matches = difflib.get_close_matches(str(name).lower(), texts, n=1, cutoff=likeness)
    return texts[matches[0]] if matches else None


def suggest(name: object, candidates: Iterable[Any]) -> str:
    """The end of a sentence that refuses a name: `; did you mean …?`, or a full stop where nothing is near."""
    meant = nearest(name, candidates)
    return "." if meant is None else f"; did you mean `{meant}`?"
