"""Tabs of stages behind those of LLaMA Board's page, and parts of its tab for evaluations; for the seam `board`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from ..board.tabs import BoardPage, CreateTab, words_of_parts
from ..stages.registry import Registry
from . import contract


TAB = "tab"  # the host's `Manager` knows the parts of tabs as `tab.<name of the part>`

# What `BoardPage` holds, by the host's names.
WIDGETS = {
    "language": "top.lang",
    "model_name": "top.model_name",
    "model_path": "top.model_path",
    "finetuning_type": "top.finetuning_type",
    "output_dir": "train.output_dir",
    "dataset_dir": "train.dataset_dir",
}


def apply_tabs(
    interface: ModuleType,
    common: ModuleType,
    host_words: dict[str, Any],
    open_engine: Callable[[], Any],
    registry: Callable[[], Registry],
) -> None:
    """Build the tabs right before the footer, where the host's tabs end. `open_engine` gives the engine of the page
    that is being built."""
    host_create_footer = interface.create_footer
    host_create_eval_tab = interface.create_eval_tab
    get_save_dir = contract.attribute(common, "get_save_dir")

    def build(engine: Any, creates: Iterable[CreateTab], **widgets: Any) -> None:
        if engine.demo_mode:  # what is built here opens any folder that a visitor names
            return
        known = {name: engine.manager.get_elem_by_id(host) for name, host in WIDGETS.items()}
        page = BoardPage(**(known | widgets), run_folder=get_save_dir)
        for create in dict.fromkeys(creates):
            parts = create(page)
            engine.manager.add_elems(TAB, parts)
            host_words.update(words_of_parts(parts))

    def create_eval_tab(engine: Any) -> dict[str, Any]:
        parts: dict[str, Any] = host_create_eval_tab(engine)
        stages = registry().stages.values()
        creates = [stage.load_evaluation() for stage in stages if stage.evaluation]
        build(engine, creates, dataset_dir=parts["dataset_dir"])
        return parts

    def create_footer() -> Any:
        build(open_engine(), [stage.load_tab() for stage in registry().stages.values() if stage.tab])
        return host_create_footer()

    interface.create_eval_tab = create_eval_tab  # type: ignore[attr-defined]
    interface.create_footer = create_footer  # type: ignore[attr-defined]
