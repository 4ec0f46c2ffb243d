"""What a tab of LLaMA Board may use of the page around it. A stage names the function that builds its tab
(`Stage.tab`), which lies in a room above this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from .words import LANGUAGES, part_words


@dataclass(frozen=True)
class BoardPage:
    """Widgets of the page: the model at its top, the run of its train tab."""

    language: Component
    model_name: Component
    model_path: Component
    finetuning_type: Component
    output_dir: Component
    dataset_dir: Component

    run_folder: Callable[..., str]
    """Folder of a run, by what the widgets of model name, kind of fine-tuning and output folder hold."""

    def run_widgets(self) -> list[Component]:
        """What `run_folder` is called with."""
        return [self.model_name, self.finetuning_type, self.output_dir]


CreateTab = Callable[[BoardPage], Mapping[str, Block]]
"""Builds a tab in the open layout and returns the parts that have words, by their names in `languages/`."""


def words_of_parts(names: Iterable[str]) -> dict[str, dict[str, dict[str, str]]]:
    """The words of parts in each language, as the host keeps its own."""
    return {name: {language: part_words(name, language) for language in LANGUAGES} for name in names}


def with_words(create: Callable[..., Any], name: str, **settings: Any) -> Any:
    """A part of the page with its English words; the page's language is set once it has been loaded."""
    return create(**part_words(name, "en"), **settings)


def shown_as_error(problem: ValueError) -> gr.Error:
    """A user's error as the page shows it."""
    return gr.Error(str(problem), print_exception=False)
