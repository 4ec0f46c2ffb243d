"""Lines of a recipe."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml


WIDTH = 118
# Options whose text is a list with commas, which is written over several lines.
_LISTED = ("dataset", "eval_dataset")


def comment_lines(*sentences: str) -> list[str]:
    """Sentences as comments, a new line for each, wrapped."""
    wrapped = [textwrap.wrap(sentence.replace("\n", "\\n"), WIDTH - 2) or [""] for sentence in sentences]
    return [f"# {line}".rstrip() for lines in wrapped for line in lines]


def option_lines(name: str, value: Any, comment: str = "") -> list[str]:
    """An option as YAML writes it, with a comment at its end."""
    if name in _LISTED and isinstance(value, str) and len(value) > WIDTH - len(name):
        return [f"{name}: >-", *(f"  {line}" for line in textwrap.wrap(value, WIDTH - 2))]
    line = f"{name}: {yaml_value(value)}"
    return [f"{line}  # {comment}" if comment else line]


def yaml_value(value: Any) -> str:
    """A value on one line. Numbers are written so that the host's reader and PyYAML agree on them."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return _float(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _float(value: float) -> str:
    """`5.0e-05` as `5.0e-5`; `0.05` as it is."""
    text = repr(value)
    if "e" not in text:
        return text
    digits, exponent = text.split("e")
    return f"{digits if '.' in digits else digits + '.0'}e{int(exponent)}"
