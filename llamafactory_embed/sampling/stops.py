"""Texts that end at stop strings, which a request may name."""

from __future__ import annotations

from collections.abc import Sequence


def stop_strings(asked: str | Sequence[str] | None) -> list[str]:
    """One, several or none, as requests name them; the empty one stops nothing."""
    return [each for each in ([asked] if isinstance(asked, str) else asked or []) if each]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def without_begun_stop(text: str, stops: Sequence[str]) -> str:
    """A text that goes on, without an end that may become a stop string."""
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]
