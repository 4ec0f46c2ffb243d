"""The panel of one stage: an accordion with a widget for every option, and what it says as option values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..hparams.option import find_problem
from ..stages.stage import Stage
from .option_field import option_fields


FIELDS_IN_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """What `create_panel` put on the page."""

    stage: Stage
    accordion: gr.Accordion
    components: dict[str, Component]
    """Option name → its widget."""


def create_panel(stage: Stage) -> Panel:
    """Build the panel inside the layout that is open, hidden until its stage is chosen.

    The ids hold the stage's name, so that stages may share the name of an option.
    """
    fields = option_fields(stage.options)
    components: dict[str, Component] = {}
    with gr.Accordion(f"{stage.label}: options", visible=False, elem_id=f"stage-{stage.name}") as accordion:
        for start in range(0, len(fields), FIELDS_IN_A_ROW):
            with gr.Row():
                for field in fields[start : start + FIELDS_IN_A_ROW]:
                    components[field.name] = field.create(f"stage-{stage.name}-{field.name}")

    return Panel(stage, accordion, components)


def option_names(stage: Stage) -> list[str]:
    """The options of a stage, in the order of their declaration."""
    return [field.name for field in option_fields(stage.options)]


def shown_defaults(stage: Stage) -> dict[str, Any]:
    """What the widgets of a fresh panel hold."""
    return {field.name: field.show(field.default) for field in option_fields(stage.options)}


def read_panel(stage: Stage, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the widgets hold as option values."""
    return {field.name: field.read(shown[field.name]) for field in option_fields(stage.options)}


def check_values(stage: Stage, values: Mapping[str, Any]) -> None:
    """Raise the ValueError that the run would raise: about what each option declares, then about what the dataclass
    checks when it is made."""
    fields = option_fields(stage.options)
    problems = [find_problem(field.declaration, field.annotation, values[field.name]) for field in fields]
    if any(problems):
        raise ValueError(" ".join(problem for problem in problems if problem is not None))

    stage.options(**values)


def changed_values(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults: all that a recipe has to name."""
    fields = option_fields(stage.options)
    return {field.name: values[field.name] for field in fields if values[field.name] != field.default}
