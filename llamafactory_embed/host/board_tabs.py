"""Tabs of stages behind those of LLaMA Board's page; a part of the seam `board`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..board.tabs import BoardPage, words_of_parts
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
    get_save_dir = contract.attribute(common, "get_save_dir")

    def create_footer() -> Any:
        engine = open_engine()
        stages = [stage for stage in registry().stages.values() if stage.tab]
        if stages and not engine.demo_mode:  # a tab opens any folder that a visitor names
            widgets = {name: engine.manager.get_elem_by_id(host) for name, host in WIDGETS.items()}
            page = BoardPage(**widgets, run_folder=get_save_dir)
            for create in dict.fromkeys(stage.load_tab() for stage in stages):
                parts = create(page)
                engine.manager.add_elems(TAB, parts)
                host_words.update(words_of_parts(parts))
        return host_create_footer()

    interface.create_footer = create_footer  # type: ignore[attr-defined]
