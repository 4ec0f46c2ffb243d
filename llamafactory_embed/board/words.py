"""What the Board says, in its languages. The words lie in `languages/`, a table for each; English names and helps of
options come from their declarations where a table has none, as they do for the stages of other packages."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..stages.host_settings import OWN_STAGES
from ..stages.stage import Stage
from .option_field import OptionField


LANGUAGES = ("en", "zh", "ja", "ko", "ru")  # those of the host's page

Words = Mapping[str, Mapping[str, str]]
"""`labels` and `helps` by option, `groups` by theme, `page`: everything else by a key."""


@functools.cache
def read_words(language: str) -> Words:
    """The table of a language."""
    path = Path(__file__).with_name("languages") / f"{language}.json"
    words: Words = json.loads(path.read_text(encoding="utf-8"))
    return words


def say(key: str, language: str, **values: object) -> str:
    """A text of the page, its places filled with values."""
    return read_words(language)["page"][key].format(**values)


def part_words(name: str, language: str) -> dict[str, str]:
    """The words of a part of the page (`look/base`): what the table says of its `label`, `info`, `value`, …"""
    page = read_words(language)["page"]
    return {key.removeprefix(f"{name}."): text for key, text in page.items() if key.startswith(f"{name}.")}


def option_words(stage: Stage, field: OptionField, language: str) -> dict[str, str]:
    """Label and help of an option's widget."""
    words = read_words(language) if stage.name in OWN_STAGES else {}
    metadata = field.declaration.metadata
    return {
        "label": words.get("labels", {}).get(field.name, field.label),
        "info": write_info(metadata, language, words.get("helps", {}).get(field.name)),
    }


def group_words(stage: Stage, group: str, language: str) -> dict[str, str]:
    """The name of a theme."""
    words = read_words(language)["groups"] if stage.name in OWN_STAGES else {}
    return {"label": words.get(group, group)}


def write_info(metadata: Mapping[str, Any], language: str = "en", help_text: str | None = None) -> str:
    """`Factor on the loss. (0 to 100)`, safe to be shown as Markdown. `help_text` translates the declared help."""
    limits = write_range(metadata.get("minimum"), metadata.get("maximum"), language)
    return escape_tags(help_text or metadata["help"]) + (f" ({limits})" if limits else "")


def write_range(minimum: float | None, maximum: float | None, language: str) -> str:
    """The bounds of a number, which include their end points."""
    if minimum is None and maximum is None:
        return ""
    key = "range.at_most" if minimum is None else "range.at_least" if maximum is None else "range.between"
    return say(key, language, minimum=minimum, maximum=maximum)


def escape_tags(text: str) -> str:
    """Keep `<mask>` and the like visible. Markdown shows tags inside backticks as they are; elsewhere it would take
    them for HTML and drop them."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
