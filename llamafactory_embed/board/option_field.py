"""One option as a field of a form: which widget shows it, and how the widget's content reads as the option's value."""

from __future__ import annotations

import csv
import dataclasses
import io
import typing
from dataclasses import dataclass
from typing import Any

import gradio as gr
import yaml
from gradio.components import Component

from ..hparams.option import choices, default_of, is_optional, item_type, scalar_type


# What a dropdown holds where the option is None; a dropdown cannot be emptied once something was chosen.
NOTHING_CHOSEN = ""


@dataclass(frozen=True)
class OptionField:
    """An option of a stage. What a widget *shows* is a number, a text, a tick or a choice; what the option *is* may
    also be None, a list or a mapping."""

    declaration: dataclasses.Field[Any]
    annotation: Any

    @property
    def name(self) -> str:
        """The option's name in a recipe."""
        return self.declaration.name

    @property
    def label(self) -> str:
        """The declared label, or the name made readable: `loss_sign` → Loss sign."""
        declared: str | None = self.declaration.metadata.get("label")
        return declared or self.name.replace("_", " ").capitalize()

    @property
    def group(self) -> str | None:
        """The theme under which the option is folded away; None for one that is always seen."""
        return self.declaration.metadata.get("group")

    @property
    def default(self) -> Any:
        """The option's value where a recipe does not name it."""
        return default_of(self.declaration)

    @property
    def allowed(self) -> tuple[Any, ...]:
        """The values of an option with choices; `bool | None` has three states and is one of them."""
        if scalar_type(self.annotation) is bool and is_optional(self.annotation):
            return (True, False)
        return choices(self.annotation)

    def create(self, element_id: str, words: dict[str, str], visible: bool = True) -> Component:
        """The widget, inside the layout that is being built; `words` are its label and its help.

        Bounds are not handed to the number widget: it would answer with its sentence instead of that of the
        command line.
        """
        common: dict[str, Any] = {
            **words,
            "value": self.show(self.default),
            "elem_id": element_id,
            "interactive": True,
            "visible": visible,
        }
        scalar = scalar_type(self.annotation)
        if self.allowed:
            none = [("none", NOTHING_CHOSEN)] if is_optional(self.annotation) else []
            return gr.Dropdown(choices=none + [(str(value), value) for value in self.allowed], **common)
        if scalar is bool:
            return gr.Checkbox(**common)

        placeholder = "none" if is_optional(self.annotation) else None  # without one, an empty number shows as 0
        if scalar in (int, float):
            return gr.Number(step=1 if scalar is int else 0.01, placeholder=placeholder, **common)
        return gr.Textbox(placeholder=placeholder, **common)

    def show(self, value: Any) -> Any:
        """The option's value as its widget holds it."""
        scalar = scalar_type(self.annotation)
        if self.allowed:
            return NOTHING_CHOSEN if value is None else value
        if scalar in (bool, int, float):
            return value
        if value is None:
            return ""
        if item_type(self.annotation) is not None:
            return _write_list(value)
        return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()

    def read(self, shown: Any) -> Any:
        """What the widget holds as the option's value. What cannot be read stays as it is: `find_problem` names it."""
        scalar, item = scalar_type(self.annotation), item_type(self.annotation)
        if self.allowed:
            return None if shown == NOTHING_CHOSEN else shown
        if scalar in (int, float):
            return _read_number(shown, scalar)
        if scalar is bool or shown is None:
            return shown
        if shown == "" and is_optional(self.annotation):
            return None
        if item is not None:
            return [_convert(part, item) for part in _read_list(shown)]
        return shown if scalar is str else self._read_yaml(shown)

    def _read_yaml(self, shown: str) -> Any:
        """Any other type is written as in a recipe."""
        try:
            return yaml.safe_load(shown)
        except yaml.YAMLError:
            raise ValueError(f"`{self.name}` must be written as in a recipe (YAML), not {shown!r}.") from None


def option_fields(options: type) -> list[OptionField]:
    """The fields of a stage's options dataclass, in the order of their declaration."""
    hints = typing.get_type_hints(options)
    return [OptionField(declaration, hints[declaration.name]) for declaration in dataclasses.fields(options)]


def _read_number(shown: Any, scalar: type) -> Any:
    """A browser knows one kind of number: 3 and 3.0 are the same to it."""
    if not isinstance(shown, (int, float)):
        return shown
    return int(shown) if scalar is int and float(shown).is_integer() else float(shown)


def _write_list(items: list[Any]) -> str:
    """Comma-separated; an item that holds a comma or a quotation mark is quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(items)
    return text.getvalue()


def _read_list(text: str) -> list[str]:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [part.strip() for row in rows for part in row if part.strip()]


def _convert(text: str, item: type) -> Any:
    if item is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return item(text)
    except ValueError:
        return text
