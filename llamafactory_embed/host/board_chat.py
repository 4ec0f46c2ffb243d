"""How a diffusion model denoises its answers, in the tab Chat of LLaMA Board's page; for the seam `board`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gradio as gr

from ..board.option_field import OptionField, option_fields
from ..board.panel import move_after
from ..board.tabs import shown_as_error, with_words, words_of_parts
from ..board.words import LANGUAGES, option_words
from ..hparams.option import find_problem
from ..stages.own import DDM
from . import contract
from .chat import DenoisingEngine


# What one tries out in a chat, of the options of sampling.
OPTIONS = ("diffusion_steps", "sampling_algorithm", "confidence_threshold", "block_length", "sampling_cache")
PANEL = "denoise/panel"  # the host's `Manager` knows the parts as `chat.denoise/<option>`


def apply_denoising(interface: ModuleType, host_words: dict[str, Any]) -> None:
    """Put the fields under the box that says whether a model is loaded, and show them while one is that denoises."""
    host_create_infer_tab = interface.create_infer_tab
    fields = [field for field in option_fields(DDM.options) if field.name in OPTIONS]

    def create_infer_tab(engine: Any) -> dict[str, Any]:
        parts: dict[str, Any] = host_create_infer_tab(engine)
        if "info_box" not in parts:
            raise contract.HostMismatchError(
                "The chat tab of LLaMA Board has no `info_box`: this LLaMA-Factory was changed, set "
                "`LLAMAFACTORY_EMBED_DISABLE=1` to open its page without our stages."
            )
        with with_words(gr.Accordion, PANEL, visible=False, elem_id="chat-denoising") as panel, gr.Row():
            widgets = {
                field.name: field.create(f"chat-{field.name}", option_words(DDM, field, "en")) for field in fields
            }
        move_after(panel, parts["info_box"])
        _connect(engine.chatter, fields, panel, widgets, parts["info_box"])
        words = {f"denoise/{each.name}": {to: option_words(DDM, each, to) for to in LANGUAGES} for each in fields}
        host_words.update(words | words_of_parts([PANEL]))
        own = {f"denoise/{name}": widget for name, widget in widgets.items()}
        engine.manager.add_elems("chat", {PANEL: panel, **own})
        return parts

    interface.create_infer_tab = create_infer_tab  # type: ignore[attr-defined]


def _connect(chatter: Any, fields: list[OptionField], panel: gr.Accordion, widgets: dict[str, Any], info: Any) -> None:
    """The box changes when a model has been loaded or unloaded; a field, when its user leaves it."""

    def show_denoising() -> list[Any]:
        denoises = isinstance(chatter.engine, DenoisingEngine)
        values = [
            gr.update(value=field.show(getattr(chatter.engine.options, field.name))) if denoises else gr.skip()
            for field in fields
        ]
        return [gr.update(visible=denoises), *values]

    def change_denoising(*shown: Any) -> None:
        if not isinstance(chatter.engine, DenoisingEngine):
            return
        values = {field.name: field.read(each) for field, each in zip(fields, shown, strict=True)}
        problems = [find_problem(field.declaration, field.annotation, values[field.name]) for field in fields]
        try:
            if any(problems):
                raise ValueError(" ".join(filter(None, problems)))
            chatter.engine.change_sampling(**values)
        except ValueError as problem:
            raise shown_as_error(problem) from problem

    inputs = [widgets[field.name] for field in fields]
    info.change(show_denoising, None, [panel, *inputs], queue=False, show_progress="hidden")
    events = [
        widget.blur if hasattr(widget, "blur") and not isinstance(widget, gr.Dropdown) else widget.input
        for widget in inputs
    ]
    gr.on(events, change_denoising, inputs, None, queue=False, show_progress="hidden")
