"""What a user who wrote an unknown name probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, known: Iterable[Any], likeness: float = 0.6) -> Any:
    """The known name or value that is most like this one, whatever its case; None where none is like it enough."""
    texts = {str(each).lower(): each for each in known}
    found = difflib.get_close_matches(str(name).lower(), texts, n=1, cutoff=likeness)
    return texts[found[0]] if found else None


def suggest(name: Any, known: Iterable[Any]) -> str:
    """The end of a sentence that refuses a name: `; did you mean …?`, or a full stop where nothing is near."""
    meant = nearest(name, known)
    return "." if meant is None else f"; did you mean `{meant}`?"
