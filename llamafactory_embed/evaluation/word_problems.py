"""Marking answers to word problems as GSM8K (Cobbe et al. 2021) states them: the number behind `####`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation


MARKER = "####"
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_PHRASE = re.compile(r"answer\s*(?:is|:|=)", re.IGNORECASE)


def find_answer(text: str) -> Decimal | None:
    r"""The number that a text gives as its answer: behind the last `####`, in the last `\boxed{}`, behind the last
    "the answer is", otherwise the last number of all. None where there is no number, or none behind the marker."""
    if MARKER in text:
        return _first_number(text.rpartition(MARKER)[2].partition("\n")[0])
    boxes, phrases = _BOXED.findall(text), _PHRASE.split(text)
    for places in (boxes, phrases[1:]):
        number = _first_number(places[-1]) if places else None
        if number is not None:
            return number
    numbers = _NUMBER.findall(text)
    return _read(numbers[-1]) if numbers else None


def is_same_answer(prediction: str, reference: str) -> bool:
    """Whether both give the same number, however it is written: 1,234.50 and $1234.5 are one."""
    expected = find_answer(reference)
    return expected is not None and find_answer(prediction) == expected


def answer_accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The share of predictions with the reference's answer."""
    if not references:
        raise ValueError("There are no answers to mark: `references` is empty.")
    pairs = zip(predictions, references, strict=True)
    return sum(is_same_answer(*pair) for pair in pairs) / len(references)


def _first_number(text: str) -> Decimal | None:
    found = _NUMBER.search(text.replace("$", "").replace(" ", ""))
    return _read(found.group()) if found else None


def _read(number: str) -> Decimal | None:
    try:
        return Decimal(number.replace(",", ""))
    except InvalidOperation:
        return None
