"""LLaMA Board in this process: panels, data sets, commands and saved configurations, without a browser."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gradio as gr
import pytest
import yaml

from llamafactory_embed.board.option_field import option_fields
from llamafactory_embed.board.panel import option_names
from llamafactory_embed.board.words import LANGUAGES, write_info
from llamafactory_embed.host import board, contract
from llamafactory_embed.host.options import extend_finetuning_arguments
from llamafactory_embed.hparams import option
from llamafactory_embed.stages.registry import Registry
from llamafactory_embed.stages.stage import HOST_STAGES, Stage


@dataclass
class EveryKind:
    """An option of every type that the parser knows."""

    rounds: int = option(3, "How often.", minimum=1, maximum=10)
    rate: float = option(0.5, "How much, see `<rate>` or <rate>.", label="The rate", minimum=0.0)
    kind: Literal["one", "two"] = option("one", "Which.")
    size_class: Literal[1, 2] | None = option(None, "Which, if any.")
    is_on: bool = option(True, "On.")
    is_off: bool = option(False, "Off.")
    is_known: bool | None = option(None, "True, false or unknown.")
    limit: int | None = option(None, "At most.", maximum=7)
    ceiling: float | None = option(1.5, "At most.")
    prefix: str = option("query: ", "In front.")
    suffix: str | None = option(None, "Behind.")
    sizes: list[int] = option([64, 32], "Sizes.")
    names: list[str] = option([], "Names.")

    def __post_init__(self) -> None:
        if self.rounds == 9:
            raise ValueError("`rounds` cannot be nine: take eight.")


@dataclass
class OtherOptions:
    """Shares an option with the stage above."""

    rate: float = option(0.5, "How much, see `<rate>` or <rate>.", label="The rate", minimum=0.0)


EVERY_KIND = Stage("every-kind", EveryKind, "nowhere:run", "Every Kind", formats=("retrieval",))
OTHER = Stage("other", OtherOptions, "nowhere:run", "DPO")  # the label of one of the host's stages

# What a user leaves in the widgets → what the run must get.
CHANGES: dict[str, tuple[Any, Any]] = {
    "rounds": (4, 4),
    "rate": (1e-5, 1e-5),
    "kind": ("two", "two"),
    "size_class": (2, 2),
    "is_on": (False, False),
    "is_off": (True, True),
    "is_known": (False, False),
    "limit": (7, 7),
    "ceiling": (2, 2.0),
    "prefix": ('it\'s a "query": $HOME & more ', 'it\'s a "query": $HOME & more '),
    "suffix": ("<|end|>", "<|end|>"),
    "sizes": ("128, 16", [128, 16]),
    "names": ('plain, "with, comma", 007', ["plain", "with, comma", "007"]),
}
NOT_ON_A_COMMAND_LINE: dict[str, tuple[Any, Any]] = {"ceiling": (None, None), "sizes": ("", [])}


@pytest.fixture(scope="module")
def interface() -> Any:
    """The host's page module, which the import hook has adjusted."""
    import llamafactory.webui.interface

    return llamafactory.webui.interface


@pytest.fixture
def stages(interface: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry of two stages for the page."""
    from llamafactory.extras.constants import TRAINING_STAGES

    host_labels = {label: name for label, name in TRAINING_STAGES.items() if name in HOST_STAGES}
    before = dict(TRAINING_STAGES)
    TRAINING_STAGES.clear()
    TRAINING_STAGES.update(host_labels)
    registry = Registry()
    registry.add(EVERY_KIND, "a package")
    registry.add(OTHER, "another package")
    monkeypatch.setattr(board, "load_registry", lambda: registry)
    yield registry
    TRAINING_STAGES.clear()
    TRAINING_STAGES.update(before)


class Page:
    """The page as `llamafactory-cli webui` makes it, and what a user would do with it."""

    def __init__(self, interface: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        engines: list[Any] = []
        engine_class = interface.Engine
        monkeypatch.setattr(
            interface, "Engine", lambda **options: engines.append(engine_class(**options)) or engines[0]
        )
        self.demo = interface.create_ui()
        monkeypatch.setattr(interface, "Engine", engine_class)
        self.engine = engines[0]
        self.runner = self.engine.runner

    def widget(self, name: str) -> Any:
        return self.engine.manager.get_elem_by_id(name)

    def event(self, function_name: str) -> Any:
        (event,) = (each for each in self.demo.fns.values() if each.name == function_name)
        return event

    def own_widgets(self) -> dict[str, Any]:
        ids = {stage: option_names(stage) for stage in (EVERY_KIND, OTHER)}
        return {
            board.widget_id(stage, name): self.widget(board.widget_id(stage, name))
            for stage in ids
            for name in ids[stage]
        }

    def fill(self, label: str = "Every Kind", **values: Any) -> dict[Any, Any]:
        """What the page sends with a click: every input's content, some of it typed by the user."""
        data = {widget: widget.value for widget in self.event("preview_train").inputs}
        typed = {
            "top.lang": "en",
            "top.model_name": "Custom",
            "top.model_path": "a/model",
            "train.dataset": ["texts"],
            "train.output_dir": "run",
            "train.config_path": "saved.yaml",
            "train.training_stage": label,
        }
        for name, value in typed.items():
            data[self.widget(name)] = value
        for name, value in values.items():
            is_option = name in option_names(EVERY_KIND)
            data[self.widget(board.widget_id(EVERY_KIND, name) if is_option else f"train.{name}")] = value
        return data

    def preview(self, data: dict[Any, Any]) -> str:
        (update,) = self.runner.preview_train(data)
        return update[self.widget("train.output_box")]


@pytest.fixture
def page(interface: Any, stages: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gr, "Warning", lambda *args, **options: None)  # no browser listens
    return Page(interface, monkeypatch)


def parse(stages: Registry, recipe: dict[str, Any] | None = None, words: list[str] | None = None) -> Any:
    """The stage's options as the run gets them, from a recipe or from a command line."""
    from llamafactory.hparams.finetuning_args import FinetuningArguments
    from transformers import HfArgumentParser

    parser = HfArgumentParser([extend_finetuning_arguments(FinetuningArguments, stages)])
    if recipe is not None:
        return parser.parse_dict(recipe, allow_extra_keys=True)[0].stage_options
    return parser.parse_args_into_dataclasses(words, return_remaining_strings=True)[0].stage_options


def expected_options(changes: dict[str, tuple[Any, Any]]) -> EveryKind:
    return EveryKind(**{name: value for name, (_, value) in changes.items()})


def shown(changes: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: typed for name, (typed, _) in changes.items()}


def bash_words(preview: str) -> list[str]:
    command = preview.split("```")[1].removeprefix("bash\n")
    return shlex.split(command.replace("\\\n", " "))


# The panels


def test_changes_cover_every_option() -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(EveryKind)}
    default = EveryKind()
    assert all(getattr(default, name) != value for name, (_, value) in CHANGES.items())


def test_dropdown_lists_our_stages_behind_the_hosts(page: Page) -> None:
    from llamafactory.extras.constants import TRAINING_STAGES

    labels = [label for _, label in page.widget("train.training_stage").choices]
    assert [TRAINING_STAGES[label] for label in labels] == [
        *("sft", "rm", "ppo", "dpo", "kto", "pt"),
        "every-kind",
        "other",
    ]
    assert TRAINING_STAGES["DPO"] == "dpo"
    assert TRAINING_STAGES["DPO (other)"] == "other"


def test_panels_stand_under_the_stage_and_only_the_chosen_one_is_seen(page: Page) -> None:
    row = page.widget("train.training_stage").parent.parent  # gradio puts a form between the row and its widgets
    siblings = row.parent.children
    panels = siblings[siblings.index(row) + 1 : siblings.index(row) + 3]
    assert [panel.elem_id for panel in panels] == ["stage-every-kind", "stage-other"]
    assert not any(panel.visible for panel in panels)

    event = page.event("show_panel")
    assert event.outputs == panels
    for label, visible in (("Every Kind", [True, False]), ("DPO (other)", [False, True]), ("DPO", [False, False])):
        update = event.fn(label)
        assert [update[panel].visible for panel in panels] == visible


def test_each_option_has_the_widget_of_its_type(page: Page) -> None:
    widgets = {name: page.widget(board.widget_id(EVERY_KIND, name)) for name in option_names(EVERY_KIND)}
    classes = {
        gr.Number: {"rounds", "rate", "limit", "ceiling"},
        gr.Dropdown: {"kind", "size_class", "is_known"},
        gr.Checkbox: {"is_on", "is_off"},
        gr.Textbox: {"prefix", "suffix", "sizes", "names"},
    }
    for widget_class, names in classes.items():
        assert {name for name, widget in widgets.items() if type(widget) is widget_class} == names
    assert [value for _, value in widgets["kind"].choices] == ["one", "two"]
    assert [value for _, value in widgets["size_class"].choices] == ["", 1, 2]
    empty = {name for name, widget in widgets.items() if type(widget) is gr.Number and widget.placeholder == "none"}
    assert empty == {"limit", "ceiling"}  # the browser shows an empty number as 0 if it has no placeholder
    assert widgets["rate"].label == "The rate"
    assert widgets["size_class"].label == "Size class"
    assert widgets["rounds"].info == "How often. (1 to 10)"
    assert widgets["limit"].info == "At most. (at most 7)"
    assert widgets["rate"].info == "How much, see `<rate>` or &lt;rate>. (at least 0.0)"
    assert write_info({"help": "Free.", "minimum": None, "maximum": None}) == "Free."


def test_a_fresh_panel_says_the_defaults(page: Page) -> None:
    for field in option_fields(EveryKind):
        assert field.read(page.widget(board.widget_id(EVERY_KIND, field.name)).value) == field.default, field.name


@pytest.mark.parametrize("changes", [CHANGES, NOT_ON_A_COMMAND_LINE], ids=["changes", "empty"])
def test_showing_and_reading_are_inverse(changes: dict[str, tuple[Any, Any]]) -> None:
    for field in option_fields(EveryKind):
        if field.name in changes:
            typed, value = changes[field.name]
            assert field.read(typed) == value, field.name
            assert field.read(field.show(value)) == value, field.name


def test_mapping_is_written_as_in_a_recipe() -> None:
    @dataclass
    class Mapped:
        weights: dict[str, float] | str | None = option(None, "Weights.")

    (field,) = option_fields(Mapped)
    assert field.read("") is None
    assert field.read("{a: 1, b: 2.5}") == {"a": 1, "b": 2.5}
    assert field.read(field.show({"a": 1, "b": 2.5})) == {"a": 1, "b": 2.5}
    with pytest.raises(ValueError, match="`weights` must be written as in a recipe"):
        field.read("{a: ")


def test_stages_that_share_an_option_do_not_clash(page: Page) -> None:
    widgets = page.own_widgets()
    assert len({widget.elem_id for widget in widgets.values()}) == len(widgets) == len(CHANGES) + 1

    data = page.fill("DPO (other)", rate=3.0)  # in the panel of the other stage
    data[page.widget(board.widget_id(OTHER, "rate"))] = 2.0
    assert page.runner._parse_train_args(data)["rate"] == 2.0


def test_buttons_of_the_train_tab_know_the_panels(page: Page) -> None:
    own = set(page.own_widgets().values())
    for name in ("preview_train", "run_train", "save_args"):
        assert own <= set(page.event(name).inputs), name
    for name in ("load_args", "check_output_dir"):
        assert own <= set(page.event(name).outputs), name
    for name in ("preview_eval", "run_eval"):
        assert own.isdisjoint(page.event(name).inputs), name


# Values


@pytest.mark.parametrize("changes", [CHANGES, NOT_ON_A_COMMAND_LINE], ids=["changes", "empty"])
def test_values_reach_the_run_exactly(page: Page, stages: Registry, changes: dict[str, tuple[Any, Any]]) -> None:
    from llamafactory.webui.common import save_cmd

    args = page.runner._parse_train_args(page.fill(**shown(changes)))
    recipe = yaml.safe_load(Path(save_cmd(args)).read_text(encoding="utf-8"))
    assert parse(stages, recipe=recipe) == expected_options(changes)


def test_values_reach_the_preview_exactly(page: Page, stages: Registry) -> None:
    words = bash_words(page.preview(page.fill(**shown(CHANGES))))
    assert words[:2] == ["llamafactory-cli", "train"]
    assert parse(stages, words=words[2:]) == expected_options(CHANGES)


def test_preview_names_what_only_a_recipe_can_say(page: Page, stages: Registry) -> None:
    changes = {**NOT_ON_A_COMMAND_LINE, "prefix": ("", "")}
    preview = page.preview(page.fill(**shown(changes)))
    lines = yaml.safe_load(preview.split("```yaml\n")[1].removesuffix("```"))
    assert lines == {name: value for name, (_, value) in NOT_ON_A_COMMAND_LINE.items()}
    words = bash_words(preview)
    assert parse(stages, words=words[2:]) == EveryKind(prefix="")


def test_defaults_are_left_out(page: Page) -> None:
    assert not set(page.runner._parse_train_args(page.fill())) & set(CHANGES)


def test_extra_arguments_win(page: Page) -> None:
    extra = json.dumps({"rounds": 5, "optim": "sgd"})
    args = page.runner._parse_train_args(page.fill(rounds=4, extra_args=extra))
    assert (args["rounds"], args["optim"]) == (5, "sgd")
    assert page.preview(page.fill(rounds=4, extra_args=json.dumps({"rounds": 0}))) == (
        "`rounds` must be between 1 and 10, not 0."
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 1000},
        {"rounds": None},
        {"rounds": 2.5},
        {"rate": -1.0, "limit": 8},
        {"kind": "three"},
        {"rounds": 9},
        {"sizes": "64, many"},
    ],
    ids=str,
)
def test_bad_value_gets_the_sentence_of_the_command_line(
    page: Page, stages: Registry, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    from llamafactory.webui import runner

    values = {
        field.name: field.read(changes[field.name]) for field in option_fields(EveryKind) if field.name in changes
    }
    with pytest.raises(ValueError) as refusal:
        parse(stages, recipe={"stage": "every-kind", **values})
    assert all(f"`{name}`" in str(refusal.value) for name in changes)

    monkeypatch.setattr(runner, "Popen", lambda *args, **options: pytest.fail("the run was started"))
    data = page.fill(**changes)
    assert page.preview(data) == str(refusal.value)
    assert [update[page.widget("train.output_box")] for update in page.runner.run_train(data)] == [str(refusal.value)]
    assert page.runner.save_args(data) == {page.widget("train.output_box"): str(refusal.value)}
    assert not Path("saves").exists()


def test_stock_stage_is_what_it_is_without_us(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    data = page.fill("Supervised Fine-Tuning", rounds=1000)  # a bad value in a panel that is not seen
    args = page.runner._parse_train_args(data)
    config = page.runner._build_config_dict(data)
    preview = page.preview(data)
    assert "bash" in preview

    ours = set(page.own_widgets().values())
    monkeypatch.setattr(board, "load_registry", Registry)
    stock_data = {widget: value for widget, value in data.items() if widget not in ours}
    assert args == page.runner._parse_train_args(stock_data)
    assert config == page.runner._build_config_dict(stock_data)
    assert preview == page.preview(stock_data)


def test_page_without_any_plugin_stage(
    interface: Any, stages: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(board, "load_registry", Registry)
    page = Page(interface, monkeypatch)
    assert len(page.widget("train.training_stage").choices) == len(HOST_STAGES)
    assert "stage: sft" not in page.preview(page.fill("Supervised Fine-Tuning"))


# Saved configurations


def test_saved_configuration_is_loaded_as_it_was(page: Page) -> None:
    data = page.fill(**shown({**CHANGES, "ceiling": (None, None)}))
    page.runner.save_args(data)
    loaded = page.runner.load_args("en", "saved.yaml")
    for name in option_names(EVERY_KIND):
        widget = page.widget(board.widget_id(EVERY_KIND, name))
        assert loaded[widget] == data[widget], name
    assert loaded[page.widget("train.training_stage")] == "Every Kind"
    assert page.widget(board.widget_id(OTHER, "rate")) not in loaded
    assert set(loaded) <= {*page.event("load_args").outputs}


def test_configuration_of_another_release_is_loaded(page: Page) -> None:
    data = page.fill(rounds=4, rate=2.0)
    page.runner.save_args(data)
    path = Path("llamaboard_config/saved.yaml")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    del config[board.widget_id(EVERY_KIND, "rate")]  # a new option
    config["stage.every-kind/gone"] = 1  # an option that was taken away
    config["stage.removed/rate"] = 1  # a stage that was taken away
    path.write_text(yaml.safe_dump(config), encoding="utf-8")

    loaded = page.runner.load_args("en", "saved.yaml")
    assert loaded[page.widget(board.widget_id(EVERY_KIND, "rounds"))] == 4
    assert loaded[page.widget(board.widget_id(EVERY_KIND, "rate"))] == EveryKind().rate


def test_configuration_of_a_stock_board_is_loaded(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    data = page.fill("KTO", cutoff_len=77)
    page.runner.save_args(data)
    assert "stage." not in Path("llamaboard_config/saved.yaml").read_text(encoding="utf-8")
    loaded = page.runner.load_args("en", "saved.yaml")
    assert loaded[page.widget("train.cutoff_len")] == 77
    assert not set(loaded) & set(page.own_widgets().values())


def test_saved_configuration_holds_no_secret(page: Page) -> None:
    extra = {"hf_hub_token": "PLANTED-token", "ray_init_kwargs": {"_redis_password": "PLANTED-key"}, "seed": 7}
    data = page.fill(extra_args=json.dumps(extra), swanlab_api_key="PLANTED-swan", swanlab_run_name="PLANTED-swan")
    page.runner.save_args(data)
    assert "PLANTED" not in Path("llamaboard_config/saved.yaml").read_text(encoding="utf-8")
    loaded = page.runner.load_args("en", "saved.yaml")
    assert loaded[page.widget("train.swanlab_api_key")] == ""
    kept = json.loads(loaded[page.widget("train.extra_args")])
    assert kept == {"hf_hub_token": None, "ray_init_kwargs": {"_redis_password": None}, "seed": 7}
    assert page.runner._parse_train_args(data)["hf_hub_token"] == "PLANTED-token"  # the run itself gets it


def test_configuration_of_a_missing_stage_is_refused(page: Page) -> None:
    page.runner.save_args(page.fill())
    path = Path("llamaboard_config/saved.yaml")
    path.write_text(path.read_text(encoding="utf-8").replace("Every Kind", "Lost Stage"), encoding="utf-8")
    with pytest.raises(gr.Error, match="'Lost Stage', which no installed package registers"):
        page.runner.load_args("en", "saved.yaml")
    assert page.widget("train.output_box") in page.runner.load_args("en", "no such file.yaml")


def test_output_folder_brings_its_panel_back(page: Page) -> None:
    data = page.fill(rounds=4)
    folder = Path("saves/Custom/lora/run")
    folder.mkdir(parents=True)
    config = page.runner._build_config_dict(data)
    (folder / "llamaboard_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    loaded = page.runner.check_output_dir("en", "Custom", "lora", "run")
    assert loaded[page.widget(board.widget_id(EVERY_KIND, "rounds"))] == 4


# Data sets, the choice of a stage, languages, precision


def test_each_stage_lists_the_data_sets_it_reads(page: Page, tmp_path: Path) -> None:
    entries = {
        "plain": {"file_name": "a.json"},
        "chats": {"file_name": "b.json", "formatting": "sharegpt"},
        "pairs": {"file_name": "c.json", "ranking": True},
        "queries": {"file_name": "d.json", "formatting": "retrieval"},
        "typo": {"file_name": "e.json", "formatting": "shargpt"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")

    def listed(event: Any, *label: str) -> list[str]:
        return [name for _, name in event.fn(str(tmp_path), *label).choices]

    train, evaluation = (each for each in page.demo.fns.values() if each.name == "list_datasets")
    assert listed(train, "Every Kind") == ["queries"]
    assert listed(train, "Supervised Fine-Tuning") == ["plain", "chats", "typo"]
    assert listed(train, "DPO") == ["pairs"]
    assert listed(train, "DPO (other)") == ["plain", "chats", "typo"]  # declares no formats: the host's own
    assert listed(evaluation) == ["plain", "chats", "typo"]
    assert train.fn(str(tmp_path / "nowhere"), "Every Kind").choices == []


def test_a_format_of_the_host_stays_in_its_lists_when_a_plugin_stage_reads_it_too() -> None:
    registry = Registry()
    registry.add(Stage("both", OtherOptions, "nowhere:run", "Both", formats=("sharegpt", "retrieval")), "a package")
    reads = board.format_filter(None, registry, {"alpaca", "sharegpt"})
    assert {name: reads(name) for name in ("alpaca", "sharegpt", "retrieval")} == {
        "alpaca": True,
        "sharegpt": True,
        "retrieval": False,
    }


def test_only_the_users_choice_forgets_the_data_sets(page: Page) -> None:
    unchanged = gr.skip()
    loaded, chosen = page.event("change_stage"), page.event("forget_datasets")
    assert loaded.outputs == chosen.outputs == [page.widget("train.dataset"), page.widget("train.packing")]
    assert loaded.targets == [(page.widget("train.training_stage")._id, "change")]
    assert chosen.targets == [(page.widget("train.training_stage")._id, "input")]
    assert (loaded.fn("Every Kind"), chosen.fn("Every Kind")) == ((unchanged, unchanged), ([], False))
    assert (loaded.fn("Pre-Training"), chosen.fn("Pre-Training")) == (([], True), (unchanged, unchanged))


def test_languages_change_what_the_page_can_translate(page: Page) -> None:
    """The stages of other packages have their own names and helps in every language."""
    assert {language for _, language in page.widget("top.lang").choices} == set(LANGUAGES)
    updates = page.engine.change_lang("zh")
    assert updates[page.widget("stage.every-kind/rounds")].info == "How often. (1 到 10)"
    assert updates[page.widget("stage.every-kind/rounds")].label == "Rounds"
    assert updates[page.widget("stage.every-kind/#")].label == "Every Kind：选项"
    assert updates[page.widget("train.cutoff_len")].label == "截断长度"


@pytest.mark.filterwarnings("ignore:The value passed into gr.Dropdown")  # the host's way to say "only the value"
def test_page_reloaded_during_a_run_shows_the_runs_values(page: Page) -> None:
    data = page.fill(rounds=4)
    page.runner.running, page.runner.running_data = True, data
    _, restored, _ = page.engine.resume()
    for name, widget in page.own_widgets().items():
        assert restored[widget].value == data[widget], name


@pytest.mark.parametrize(("has_accelerator", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_one_that_the_machine_has(
    interface: Any,
    stages: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_accelerator: bool,
    precision: str,
) -> None:
    from llamafactory.extras import misc

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(misc, "is_accelerator_available", lambda: has_accelerator)
    page = Page(interface, monkeypatch)
    assert page.widget("train.compute_type").get_config()["value"] == precision


# The contract


def test_changed_host_is_one_sentence_and_nothing_is_touched(interface: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.webui import common, runner

    before = dict(vars(runner.Runner)), interface.create_train_tab, common._clean_cmd
    monkeypatch.setattr(common, "_clean_cmd", lambda args, keep_false: args)
    with pytest.raises(contract.HostMismatchError, match=r"takes \(args, keep_false\) instead of \(args\)"):
        board.apply(interface)
    monkeypatch.undo()
    assert before == (dict(vars(runner.Runner)), interface.create_train_tab, common._clean_cmd)


def test_train_tab_without_a_widget_is_one_sentence(page: Page) -> None:
    train_tab = SimpleNamespace(list_datasets=None, change_stage=lambda training_stage: None)
    changed = SimpleNamespace(create_train_tab=lambda engine: {"training_stage": None})
    board._apply_page(changed, train_tab, {"SFT": "sft"}, {}, [])  # type: ignore[arg-type]
    with (
        gr.Blocks(),
        pytest.raises(contract.HostMismatchError, match="has no `dataset`: this LLaMA-Factory was changed"),
    ):
        changed.create_train_tab(page.engine)
