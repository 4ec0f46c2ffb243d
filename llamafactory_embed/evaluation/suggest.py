"""`; did you mean …?`"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the known one that was probably meant, or a full stop."""
    by_lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean `{by_lower[nearest[0]]}`?" if nearest else "."
