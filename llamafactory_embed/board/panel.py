"""The panel of one stage: an accordion with a widget for every option, what it says as option values, its place on the
page, and the values as words of a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
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
    """Build the panel inside the open layout, hidden until its stage is chosen.

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


# On the page


def connect_panels(
    panels: Sequence[Panel],
    stage_names: Mapping[str, str],
    *,
    training_stage: Component,
    dataset: Component,
    packing: Component,
) -> None:
    """Put the panels under the row of the stage's dropdown and let the dropdown show the one of its stage.

    `stage_names` maps what the dropdown lists to the names of stages.
    """
    if not panels:
        return

    for panel in reversed(panels):
        move_after(panel.accordion, training_stage)

    def show_panel(label: str) -> dict[Block, gr.Accordion]:
        return {panel.accordion: gr.Accordion(visible=panel.stage.name == stage_names[label]) for panel in panels}

    def forget_datasets(label: str) -> tuple[Any, Any]:
        """Those of another stage may not fit, and none of our stages takes the host's kind of packing."""
        is_ours = any(panel.stage.name == stage_names[label] for panel in panels)
        return ([], False) if is_ours else (gr.skip(), gr.skip())

    # `change` also happens when a configuration is loaded, `input` only when it is the user who chooses
    training_stage.change(show_panel, [training_stage], [panel.accordion for panel in panels], queue=False)
    training_stage.input(forget_datasets, [training_stage], [dataset, packing], queue=False)


def move_after(block: Block, neighbour: Block) -> None:
    """Put a block right after another one, or after the part of its layout that holds the other one."""
    while neighbour.parent is not block.parent:
        neighbour = neighbour.parent

    siblings = block.parent.children
    siblings.remove(block)
    siblings.insert(siblings.index(neighbour) + 1, block)


# Values as words of a command line


def is_sayable(value: object) -> bool:
    """The argument parser has no word for None, and none for an empty list; a recipe has."""
    return value is not None and value != []


def write_words(value: object) -> str:
    """The words after `--option`, quoted for the shell where that is needed."""
    if isinstance(value, list):
        return " ".join(write_words(item) for item in value)
    if isinstance(value, dict):
        return shlex.quote(json.dumps(value, ensure_ascii=False))
    return shlex.quote(str(value))


def write_recipe_line(name: str, value: object) -> str:
    """The same option as a line of a recipe."""
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"
