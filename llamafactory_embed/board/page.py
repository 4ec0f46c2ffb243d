"""How the panels live on the page: where they stand, which one is seen, what the choice of a stage changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from .panel import Panel


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
        move_behind(panel.accordion, training_stage)

    def show_panel(label: str) -> dict[Block, gr.Accordion]:
        return {panel.accordion: gr.Accordion(visible=panel.stage.name == stage_names[label]) for panel in panels}

    def forget_datasets(label: str) -> tuple[Any, Any]:
        """Those of another stage may not fit, and none of our stages takes the host's kind of packing."""
        is_ours = any(panel.stage.name == stage_names[label] for panel in panels)
        return ([], False) if is_ours else (gr.skip(), gr.skip())

    # `change` also happens when a configuration is loaded, `input` only when it is the user who chooses
    training_stage.change(show_panel, [training_stage], [panel.accordion for panel in panels], queue=False)
    training_stage.input(forget_datasets, [training_stage], [dataset, packing], queue=False)


def move_behind(block: Block, neighbour: Block) -> None:
    """Put a block right behind another one, or behind the part of its own layout that holds the other one."""
    while neighbour.parent is not block.parent:
        neighbour = neighbour.parent

    siblings = block.parent.children
    siblings.remove(block)
    siblings.insert(siblings.index(neighbour) + 1, block)
