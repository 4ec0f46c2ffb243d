"""Seam: LLaMA Board. Our stages in its list, a panel of options for each, and their values in its commands, runs and
saved configurations. The only file that touches the host's web code; the panels themselves are in `board/`.

The widgets are known to the host's `Manager` as `stage.<name of the stage>/<name of the option>`. The slash keeps them
apart from the host's own names, which it looks up in its table of languages without the part in front of the dot.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import gradio as gr

from ..board.panel import (
    changed_values,
    check_values,
    connect_panels,
    create_panel,
    is_sayable,
    option_names,
    panel_parts,
    panel_words,
    read_panel,
    shown_defaults,
    write_recipe_line,
    write_words,
)
from ..hparams.secrets import secrets_of, without_secrets
from ..stages.registry import Registry, load_registry
from ..stages.stage import Stage
from . import contract
from .board_chat import apply_denoising
from .board_picture import apply_picture
from .board_tabs import apply_tabs


WIDGETS = "stage"

# The widgets of the host's train tab that our stages have to do with.
TRAIN_WIDGETS = ("training_stage", "dataset", "packing", "compute_type")
ROOM_FOR_THE_STAGE = 320  # pixels, for the longest of our labels


def apply(interface: ModuleType) -> None:
    """Patch the modules that make up the page; all of them are loaded when `interface` is."""
    package = interface.__name__.rpartition(".")[0]
    control, runner, common, manager, locales, train_tab, eval_tab = (
        importlib.import_module(f"{package}.{name}")
        for name in ("control", "runner", "common", "manager", "locales", "components.train", "components.eval")
    )
    for owner, name, parameters in (
        (interface, "create_train_tab", ("engine",)),
        (interface, "create_eval_tab", ("engine",)),
        (interface, "create_infer_tab", ("engine",)),
        (interface, "create_footer", ()),
        (control, "list_datasets", ("dataset_dir", "training_stage")),
        (control, "load_dataset_info", ("dataset_dir",)),
        (train_tab, "list_datasets", ("dataset_dir", "training_stage")),
        (train_tab, "change_stage", ("training_stage",)),
        (eval_tab, "list_datasets", ("dataset_dir", "training_stage")),
        (contract.attribute(runner, "Runner"), "_initialize", ("self", "data", "do_train", "from_preview")),
        (contract.attribute(runner, "Runner"), "_parse_train_args", ("self", "data")),
        (contract.attribute(runner, "Runner"), "_build_config_dict", ("self", "data")),
        (contract.attribute(runner, "Runner"), "monitor", ("self",)),
        (runner, "gen_cmd", ("args",)),
        (runner, "get_trainer_info", ("lang", "output_path", "do_train")),
        (runner, "load_args", ("config_path",)),
        (common, "_clean_cmd", ("args",)),
        (contract.attribute(manager, "Manager"), "add_elems", ("self", "tab_name", "elem_dict")),
        (contract.attribute(manager, "Manager"), "get_base_elems", ("self",)),
        (contract.attribute(manager, "Manager"), "get_elem_by_id", ("self", "elem_id")),
    ):
        contract.check_signature(contract.attribute(owner, name), *parameters)
    contract.attribute(control, "DEFAULT_DATA_DIR")
    stage_names = contract.attribute(runner, "TRAINING_STAGES")  # one table for all of these modules

    host_words = contract.attribute(locales, "LOCALES")
    engines: list[Any] = []

    _apply_page(interface, train_tab, stage_names, host_words, engines)
    apply_tabs(interface, common, host_words, lambda: engines[-1], lambda: load_registry())
    apply_denoising(interface, host_words)
    _apply_datasets(control, train_tab, eval_tab, stage_names)
    _apply_runner(runner.Runner, stage_names)
    _apply_commands(runner, common)
    apply_picture(runner)
    _apply_configurations(runner, stage_names)


def add_stages(stage_names: dict[str, str], registry: Registry) -> None:
    """Join the host's table label → stage. A label that is taken gets the stage's name appended."""
    for stage in registry.stages.values():
        if stage.name not in stage_names.values():
            label = stage.label if stage.label not in stage_names else f"{stage.label} ({stage.name})"
            stage_names[label] = stage.name


def find_stage(stage_names: dict[str, str], label: str) -> Stage | None:
    """The plugin stage of a label of the page, None for a stage of the host."""
    return load_registry().stages.get(stage_names[label])


def widget_id(stage: Stage, option_name: str) -> str:
    """An option's name in the host's `Manager`, and its key in a saved configuration."""
    return f"{WIDGETS}.{stage.name}/{option_name}"


# The page


def _apply_page(
    interface: ModuleType,
    train_tab: ModuleType,
    stage_names: dict[str, str],
    host_words: dict[str, Any],
    engines: list[Any],
) -> None:
    """A hidden panel for each stage under the row with the stage's dropdown."""
    host_create_train_tab = interface.create_train_tab
    host_change_stage = train_tab.change_stage

    def create_train_tab(engine: Any) -> dict[str, Any]:
        engines[:] = [engine]  # of the page that is being built, for the tabs that come later
        registry = load_registry()
        add_stages(stage_names, registry)
        panels = [create_panel(stage) for stage in registry.stages.values()]
        for panel in panels:
            engine.manager.add_elems(WIDGETS, panel_parts(panel))
            host_words.update(panel_words(panel))  # the host changes the language of all that it has words for
        with _joined_inputs(engine.manager, [each for panel in panels for each in panel.components.values()]):
            train_widgets: dict[str, Any] = host_create_train_tab(engine)

        for name in TRAIN_WIDGETS:
            if name not in train_widgets:
                raise contract.HostMismatchError(
                    f"The train tab of LLaMA Board has no `{name}`: this LLaMA-Factory was changed, set "
                    "`LLAMAFACTORY_EMBED_DISABLE=1` to open its page without our stages."
                )

        stage_list, dataset, packing, compute_type = (train_widgets[name] for name in TRAIN_WIDGETS)
        connect_panels(panels, stage_names, training_stage=stage_list, dataset=dataset, packing=packing)
        stage_list.min_width = ROOM_FOR_THE_STAGE  # its neighbours would leave it half of that
        from llamafactory.extras.misc import is_accelerator_available

        if not is_accelerator_available():
            compute_type.value = "fp32"  # with bf16, the host's choice, every run on a CPU ends in an error
        return train_widgets

    def change_stage(training_stage: str = next(iter(stage_names))) -> Any:
        """The host forgets the chosen data sets at every change of the stage, also at one that comes from loading a
        configuration which names both. For our stages `connect_panels` does it when it is the user who chooses."""
        if find_stage(stage_names, training_stage) is None:
            return host_change_stage(training_stage)
        return gr.skip(), gr.skip()

    interface.create_train_tab = create_train_tab  # type: ignore[attr-defined]
    train_tab.change_stage = change_stage  # type: ignore[attr-defined]


@contextlib.contextmanager
def _joined_inputs(manager: Any, widgets: Iterable[Any]) -> Iterator[None]:
    """While it is open, the host's common inputs include ours: a tab that is built then connects them to all of its
    buttons, to preview, start, save and load."""
    host_get_base_elems = manager.get_base_elems
    manager.get_base_elems = lambda: host_get_base_elems() | set(widgets)
    try:
        yield
    finally:
        del manager.get_base_elems


# Data sets


def _apply_datasets(
    control: ModuleType, train_tab: ModuleType, eval_tab: ModuleType, stage_names: dict[str, str]
) -> None:
    """List the data sets that the chosen stage reads."""
    from llamafactory.data.converter import DATASET_CONVERTERS

    host_list_datasets = control.list_datasets

    def list_datasets(dataset_dir: str | None = None, training_stage: str = next(iter(stage_names))) -> gr.Dropdown:
        listed = [name for _, name in host_list_datasets(dataset_dir, training_stage).choices]
        if not listed:
            return gr.Dropdown(choices=[])

        entries = control.load_dataset_info(control.DEFAULT_DATA_DIR if dataset_dir is None else dataset_dir)
        reads = format_filter(find_stage(stage_names, training_stage), load_registry(), set(DATASET_CONVERTERS))
        return gr.Dropdown(choices=[name for name in listed if reads(entries[name].get("formatting", "alpaca"))])

    for module in (control, train_tab, eval_tab):
        module.list_datasets = list_datasets  # type: ignore[attr-defined]


def format_filter(stage: Stage | None, registry: Registry, host_formats: set[str]) -> Callable[[str], bool]:
    """Whether a stage (None: one of the host's) reads data sets of a `formatting`. The host's lists keep unknown
    formats, which fail as they do without us."""
    if stage is not None and stage.formats:
        return set(stage.formats).__contains__

    foreign = {name for each in registry.stages.values() for name in each.formats} - host_formats
    return lambda formatting: formatting not in foreign


# Preview and run


def _apply_runner(runner_class: Any, stage_names: dict[str, str]) -> None:
    """Check the panel before anything starts, and hand its values on."""
    host_initialize = runner_class._initialize
    host_parse_train_args = runner_class._parse_train_args
    host_build_config_dict = runner_class._build_config_dict

    def read_options(runner: Any, data: dict[Any, Any]) -> tuple[Stage | None, dict[str, Any]]:
        """The chosen stage and the values of its options; the field with extra arguments wins, as it does over the
        host's own widgets."""

        def get(name: str) -> Any:
            return data[runner.manager.get_elem_by_id(name)]

        extra = dict(json.loads(get("train.extra_args")))
        stage = load_registry().stages.get(extra.get("stage", stage_names[get("train.training_stage")]))
        if stage is None:
            return None, {}

        return stage, read_panel(stage, {name: get(widget_id(stage, name)) for name in option_names(stage)}, extra)

    def initialize(self: Any, data: dict[Any, Any], do_train: bool, from_preview: bool) -> str:
        error: str = host_initialize(self, data, do_train, from_preview)
        if error or not do_train:
            return error

        try:
            stage, values = read_options(self, data)
            if stage is not None:
                check_values(stage, values)
        except ValueError as problem:
            return str(problem)
        return ""

    def parse_train_args(self: Any, data: dict[Any, Any]) -> dict[str, Any]:
        stage, values = read_options(self, data)
        changed = changed_values(stage, values) if stage is not None else {}
        return {**host_parse_train_args(self, data), **changed}

    def build_config_dict(self: Any, data: dict[Any, Any]) -> dict[str, Any]:
        """Without the panels of other stages, and for our stages without secrets: it is saved, also in the folder of
        the run."""
        config: dict[str, Any] = host_build_config_dict(self, data)
        label = config.get("train.training_stage")
        stage = find_stage(stage_names, label) if label is not None else None
        own = {widget_id(stage, name) for name in option_names(stage)} if stage is not None else set()
        kept = {key: value for key, value in config.items() if key in own or not key.startswith(f"{WIDGETS}.")}
        if stage is None:
            return kept
        cleaned = without_secrets(kept, secrets_of(kept, json.loads(kept.get("train.extra_args") or "{}")))
        return {key: "" if kept[key] and value is None else value for key, value in cleaned.items()}

    runner_class._initialize = initialize
    runner_class._parse_train_args = parse_train_args
    runner_class._build_config_dict = build_config_dict


def _apply_commands(runner: ModuleType, common: ModuleType) -> None:
    """Our options as they are: the host leaves out what is false or empty, and quotes nothing in its preview."""
    host_clean_cmd = common._clean_cmd
    host_gen_cmd = runner.gen_cmd

    def own_args(args: dict[str, Any]) -> dict[str, Any]:
        stage = load_registry().stages.get(args.get("stage", ""))
        names = option_names(stage) if stage is not None else []
        return {name: args[name] for name in names if name in args}

    def clean_cmd(args: dict[str, Any]) -> dict[str, Any]:
        return {**host_clean_cmd(args), **own_args(args)}

    def gen_cmd(args: dict[str, Any]) -> str:
        own = own_args(args)
        others = {name: value for name, value in args.items() if name not in own}
        sayable = {name: write_words(value) for name, value in own.items() if is_sayable(value)}
        lines = [write_recipe_line(name, value) for name, value in own.items() if not is_sayable(value)]
        text: str = host_gen_cmd({**others, **sayable})
        if lines:
            text += "\n\nNo command line can say this, a recipe can (and the run does):\n\n```yaml\n"
            text += "\n".join(lines) + "\n```"
        return text

    common._clean_cmd = clean_cmd  # type: ignore[attr-defined]
    runner.gen_cmd = gen_cmd  # type: ignore[attr-defined]


# Saved configurations


def _apply_configurations(runner: ModuleType, stage_names: dict[str, str]) -> None:
    """Load configurations that were saved with other stages or options."""
    host_load_args = runner.load_args

    def load_args(config_path: str) -> dict[str, Any] | None:
        config: dict[str, Any] | None = host_load_args(config_path)
        label = config.get("train.training_stage") if config is not None else None
        if config is None or label is None:
            return config
        if label not in stage_names:
            raise gr.Error(f"{config_path} was saved for the stage {label!r}, which no installed package registers.")

        stage = find_stage(stage_names, label)
        defaults = shown_defaults(stage) if stage is not None else {}
        fresh = {widget_id(stage, name): value for name, value in defaults.items()} if stage is not None else {}
        saved = {key: value for key, value in config.items() if key in fresh or not key.startswith(f"{WIDGETS}.")}
        return fresh | saved

    runner.load_args = load_args  # type: ignore[attr-defined]
