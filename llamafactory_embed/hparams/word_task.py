"""Options of `stage: word-task`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class WordTaskOptions:
    """What is predicted of each word, and from which hidden states."""
