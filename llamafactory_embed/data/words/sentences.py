"""What the readers of all formats give: sentences of words, with a label a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentence:
    """Words and their labels, with the place they come from."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    """As many as words; empty where nothing is known and only predictions are wanted."""
    file: str
    line: int


def refuse_unseen_labels(sentences: Iterable[Sentence], labels: Sequence[str]) -> None:
    """A label that was never trained cannot be predicted: data of another kind, or a typing error."""
    known = set(labels)
    for sentence in sentences:
        for position, label in enumerate(sentence.labels):
            if label not in known:
                raise ValueError(
                    f"{sentence.file}:{sentence.line}: the label `{label}` of the word `{sentence.words[position]}` "
                    f"does not occur in the training data, which have {', '.join(labels)}; if it is right, "
                    "`unseen_labels: count_as_wrong` evaluates nevertheless."
                )
