"""The panels of our stages: what is seen first, what is hidden beside other choices, and what it all is called."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
import pytest

from llamafactory_embed.board.option_field import option_fields
from llamafactory_embed.board.panel import (
    create_panel,
    grouped_fields,
    panel_parts,
    panel_words,
    read_panel,
    shown_defaults,
    visible_parts,
)
from llamafactory_embed.board.words import LANGUAGES, read_words
from llamafactory_embed.hparams import option
from llamafactory_embed.hparams.relevance import ON, condition_problems, deciding_options, has_effect
from llamafactory_embed.stages import own
from llamafactory_embed.stages.stage import Stage


OWN = [own.CONTRASTIVE, own.TDRO, own.MNTP, own.WORD_TASK, own.DDM, own.DDM_SFT]
SEEN_FIRST = 6

every_stage = pytest.mark.parametrize("stage", OWN, ids=lambda stage: stage.name)


def hidden(stage: Stage, **values: Any) -> set[str]:
    return {name for name, is_seen in visible_parts(stage, shown_defaults(stage) | values).items() if not is_seen}


@every_stage
def test_a_newcomer_sees_few_options(stage: Stage) -> None:
    groups = grouped_fields(stage)
    assert 1 < len(groups[None]) <= SEEN_FIRST
    names = [field.name for fields in groups.values() for field in fields]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(stage.options))


# Conditions


@dataclass
class Wrong:
    kind: Literal["one", "two"] = option("one", "Which.")
    is_on: bool = option(False, "Whether.")
    rate: float | None = option(None, "How much.", when={"kid": ("one",)})
    limit: int = option(0, "At most.", when=[{"kind": ("two",)}, {"kind": ("three",), "is_on": ON}])
    size: int = option(0, "How large.", when={"kind": "one"})
    name: str = option("", "Name.", when={"is_on": ("yes",)})


def test_a_condition_that_nothing_can_meet_is_refused() -> None:
    problems = condition_problems(Wrong)
    assert problems == [
        "`when` of `rate` names `kid`, which is no option; did you mean `kind`?",
        "`when` of `limit`: 'three' is no value of `kind`.",
        "`when` of `size` must give `kind` a tuple of values or ON, not 'one'.",
        "`when` of `name`: 'yes' is no value of `is_on`.",
    ]
    with pytest.raises(ValueError, match="Options of stage 'wrong': `when` of `rate` names `kid`"):
        Stage("wrong", Wrong, "nowhere:run", "Wrong")


@pytest.mark.parametrize(
    ("kind", "is_on", "weight", "expected"),
    [("one", True, 1.0, False), ("two", False, 0.0, True), ("three", True, 0.0, False), ("three", True, 0.5, True)],
)
def test_all_of_one_alternative_must_hold(kind: str, is_on: bool, weight: float, expected: bool) -> None:
    field = option(0, "Help.", when=[{"kind": ("two",)}, {"kind": ("three",), "is_on": ON, "weight": ON}])
    assert has_effect(field, {"kind": kind, "is_on": is_on, "weight": weight}) is expected
    assert has_effect(option(0, "Help."), {})


def test_choices_hide_what_they_make_meaningless() -> None:
    latents = {"latents", "latent_heads", "latent_head_size", "latents_init_std", "Latent pooling"}
    assert latents <= hidden(own.CONTRASTIVE)
    assert not latents & hidden(own.CONTRASTIVE, pooling="multi_layer_latent")

    teacher = {"kl_weight", "teacher_temperature"}
    assert hidden(own.CONTRASTIVE) & teacher == {"teacher_temperature"}
    assert not hidden(own.CONTRASTIVE, kl_weight=0.5) & teacher
    assert hidden(own.CONTRASTIVE, contrastive_loss="kl_distillation", kl_weight=0.5) & teacher == {"kl_weight"}
    assert {*teacher, "Teacher", "Negatives"} <= hidden(own.CONTRASTIVE, contrastive_loss="cosent")

    assert "dataset_sampling_temperature" not in hidden(own.CONTRASTIVE, dataset_weights="temperature")
    assert "anneal_steps" in hidden(own.DDM, block_size=32) - hidden(own.DDM, block_size=0)
    assert "cache_refresh_steps" in hidden(own.DDM) - hidden(own.DDM, sampling_cache="dual")
    assert "ddm_separator" in hidden(own.DDM_SFT) - hidden(own.DDM_SFT, ddm_format="diffuseq")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop", "adagrad", "adafactor"])
def test_what_a_hidden_widget_holds_stops_no_run(optimizer: str) -> None:
    """The options refuse what belongs to another optimizer; on the page it was typed before the optimizer changed."""
    typed = {"tdro_momentum": 0.9, "tdro_dampening": 0.1, "tdro_beta1": 0.8, "tdro_beta2": 0.9, "tdro_epsilon": 1e-5}
    shown = shown_defaults(own.TDRO) | typed | {"tdro_optimizer": optimizer}
    values = read_panel(own.TDRO, shown, {})
    own.TDRO.options(**values)
    says_nothing = hidden(own.TDRO, **typed, tdro_optimizer=optimizer)
    assert {name for name, value in typed.items() if values[name] == value} == typed.keys() - says_nothing
    assert read_panel(own.TDRO, shown, {"tdro_beta1": 0.7})["tdro_beta1"] == 0.7  # as the recipe, so refused like it


def test_the_page_shows_and_hides() -> None:
    with gr.Blocks() as page:
        panel = create_panel(own.CONTRASTIVE)
    (event,) = page.fns.values()
    deciding = deciding_options(own.CONTRASTIVE.options)
    assert event.inputs == [panel.components[name] for name in deciding]
    assert event.targets == [(panel.components[name]._id, "change") for name in deciding]

    now_hidden = hidden(own.CONTRASTIVE)
    assert {
        name for name, widget in panel.components.items() if not widget.visible
    } == now_hidden - panel.groups.keys()
    assert {name for name, part in panel.groups.items() if not part.visible} == now_hidden & panel.groups.keys()
    defaults = shown_defaults(own.CONTRASTIVE) | {"pooling": "latent", "contrastive_loss": "repllama"}
    updates = event.fn(*(defaults[name] for name in deciding))
    for part, update in zip(event.outputs, updates, strict=True):
        (name,) = (key for key, each in (panel.components | panel.groups).items() if each is part)
        assert update["visible"] == (
            name not in hidden(own.CONTRASTIVE, pooling="latent", contrastive_loss="repllama")
        )


# Words


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_has_a_name_in_every_language(language: str) -> None:
    words = read_words(language)
    options = {field.name for stage in OWN for field in option_fields(stage.options)}
    groups = {group for stage in OWN for group in grouped_fields(stage)} - {None}
    assert words["labels"].keys() == options, "labels of `board/languages` and options differ"
    assert words["groups"].keys() == groups, "groups of `board/languages` and of the options differ"
    assert words["page"].keys() == read_words("en")["page"].keys()
    for key, text in words["page"].items():
        assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", read_words("en")["page"][key]), (key, text)


def test_every_help_is_explained_in_chinese() -> None:
    """With the same values and other options as the English one."""
    helps = read_words("zh")["helps"]
    declared = {
        field.name: field.declaration.metadata["help"] for stage in OWN for field in option_fields(stage.options)
    }
    assert helps.keys() == declared.keys(), "helps of `board/languages/zh.json` and options differ"
    for name, text in declared.items():
        assert set(re.findall(r"`[^`]+`", helps[name])) == set(re.findall(r"`[^`]+`", text)), name
        assert set(re.findall(r"\d+(?:\.\d+)?", helps[name])) >= set(re.findall(r"\d+\.\d+", text)), name


@every_stage
def test_the_page_knows_the_words_of_every_part(stage: Stage) -> None:
    with gr.Blocks():
        panel = create_panel(stage)
    words = panel_words(panel)
    assert words.keys() == panel_parts(panel).keys()
    for name, part in panel_parts(panel).items():
        assert words[name].keys() == set(LANGUAGES)
        assert part.label == words[name]["en"]["label"]
        assert "." not in name  # the host looks words up without what stands before a dot
