"""The panel of one stage: what matters first, the rest folded away by theme; what it says as option values, its place
on the page, and the values as words of a command line."""

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
from ..hparams.relevance import alternatives, deciding_options, has_effect
from ..stages.stage import Stage
from .option_field import OptionField, option_fields
from .words import LANGUAGES, group_words, option_words, say


FIELDS_IN_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """What `create_panel` put on the page."""

    stage: Stage
    accordion: gr.Accordion
    components: dict[str, Component]
    """Option name → its widget."""

    groups: dict[str, gr.Accordion]
    """Theme → what folds its options away."""


def create_panel(stage: Stage) -> Panel:
    """Build the panel inside the open layout, hidden until its stage is chosen.

    The ids hold the stage's name, so that stages may share the name of an option.
    """
    components: dict[str, Component] = {}
    groups: dict[str, gr.Accordion] = {}
    is_seen = visible_parts(stage, shown_defaults(stage))
    with gr.Accordion(
        say("panel.title", "en", stage=stage.label), visible=False, elem_id=f"stage-{stage.name}"
    ) as accordion:
        for group, fields in grouped_fields(stage).items():
            if group is None:
                components |= _create_rows(stage, fields, is_seen)
                continue
            with gr.Accordion(**group_words(stage, group, "en"), open=False, visible=is_seen[group]) as groups[group]:
                components |= _create_rows(stage, fields, is_seen)

    panel = Panel(stage, accordion, components, groups)
    _hide_what_has_no_effect(panel)
    return panel


def grouped_fields(stage: Stage) -> dict[str | None, list[OptionField]]:
    """The options by their theme, in the order of their declaration; first (None) those that are always seen."""
    groups: dict[str | None, list[OptionField]] = {None: []}
    for field in option_fields(stage.options):
        groups.setdefault(field.group, []).append(field)
    return groups


def visible_parts(stage: Stage, shown: Mapping[str, Any]) -> dict[str, bool]:
    """Which options, and which themes, mean something beside what the widgets of the deciding options hold."""
    deciding = set(deciding_options(stage.options))
    values = {
        field.name: field.read(shown[field.name]) for field in option_fields(stage.options) if field.name in deciding
    }
    is_seen: dict[str, bool] = {}
    for group, fields in grouped_fields(stage).items():
        is_seen |= {field.name: has_effect(field.declaration, values) for field in fields}
        if group is not None:
            is_seen[group] = any(is_seen[field.name] for field in fields)
    return is_seen


def panel_parts(panel: Panel) -> dict[str, Block]:
    """Everything on the panel that has words, by its name on the page: `stage/option`, `stage/#theme`, `stage/#`. The
    host's names have no slash."""
    name = panel.stage.name
    return (
        {f"{name}/{option}": widget for option, widget in panel.components.items()}
        | {f"{name}/#{group}": accordion for group, accordion in panel.groups.items()}
        | {f"{name}/#": panel.accordion}
    )


def panel_words(panel: Panel) -> dict[str, dict[str, dict[str, str]]]:
    """The words of each part in each language, as the host keeps its own."""
    stage = panel.stage
    fields = option_fields(stage.options)
    return (
        {f"{stage.name}/{each.name}": {to: option_words(stage, each, to) for to in LANGUAGES} for each in fields}
        | {f"{stage.name}/#{group}": {to: group_words(stage, group, to) for to in LANGUAGES} for group in panel.groups}
        | {f"{stage.name}/#": {to: {"label": say("panel.title", to, stage=stage.label)} for to in LANGUAGES}}
    )


def _create_rows(stage: Stage, fields: list[OptionField], is_seen: Mapping[str, bool]) -> dict[str, Component]:
    components: dict[str, Component] = {}
    for start in range(0, len(fields), FIELDS_IN_A_ROW):
        with gr.Row():
            for field in fields[start : start + FIELDS_IN_A_ROW]:
                components[field.name] = field.create(
                    f"stage-{stage.name}-{field.name}", option_words(stage, field, "en"), is_seen[field.name]
                )
    return components


def _hide_what_has_no_effect(panel: Panel) -> None:
    """Let the widgets of the deciding options show and hide the others."""
    deciding = deciding_options(panel.stage.options)
    if not deciding:
        return
    at_start = visible_parts(panel.stage, shown_defaults(panel.stage))
    dependent = {field.name for field in option_fields(panel.stage.options) if alternatives(field.declaration)}
    parts: dict[str, Block] = {name: panel.components[name] for name in at_start if name in dependent}
    parts |= {name: panel.groups[name] for name in at_start if name in panel.groups}

    def show_and_hide(*shown: Any) -> list[dict[str, Any]]:
        is_seen = visible_parts(panel.stage, dict(zip(deciding, shown, strict=True)))
        return [gr.update(visible=is_seen[name]) for name in parts]

    widgets = [panel.components[name] for name in deciding]
    gr.on(
        [widget.change for widget in widgets],
        show_and_hide,
        widgets,
        list(parts.values()),
        queue=False,
        show_progress="hidden",
    )


def option_names(stage: Stage) -> list[str]:
    """The options of a stage, in the order of their declaration."""
    return [field.name for field in option_fields(stage.options)]


def shown_defaults(stage: Stage) -> dict[str, Any]:
    """What the widgets of a fresh panel hold."""
    return {field.name: field.show(field.default) for field in option_fields(stage.options)}


def read_panel(stage: Stage, shown: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the widgets hold as option values, and what is `given` beside them, which wins. A widget that is hidden
    beside these values says nothing: what was typed into it before must not stop a run."""
    fields = option_fields(stage.options)
    values = {field.name: field.read(shown[field.name]) for field in fields}
    values |= {name: value for name, value in given.items() if name in values}
    says_nothing = {field.name for field in fields if not has_effect(field.declaration, values)} - given.keys()
    return values | {field.name: field.default for field in fields if field.name in says_nothing}


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
