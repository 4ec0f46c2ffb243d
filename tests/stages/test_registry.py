"""Stages from entry points: what is taken up, what is refused, and with which sentence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from llamafactory_embed.hparams import option
from llamafactory_embed.stages.registry import GROUP, read_registry
from llamafactory_embed.stages.stage import Stage


@dataclass
class Options:
    strength: float = option(1.0, "How strongly.", minimum=0.0)


def make_stage(name: str = "warmth", **changes: object) -> Stage:
    return dataclasses.replace(Stage(name=name, options=Options, run="somewhere:run", label="Warmth"), **changes)


WARMTH = make_stage()
COLD = make_stage("cold")
NOT_A_STAGE = "warmth"


def point(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{attribute}", GROUP)


def test_stages_are_found_by_name_and_host_stages_are_left_alone() -> None:
    registry = read_registry([point("warmth", "WARMTH"), point("cold", "COLD")])
    assert registry.find("warmth") is WARMTH
    assert registry.find("cold") is COLD
    assert registry.find("sft") is None
    assert registry.problems == {}


def test_an_unknown_stage_lists_the_known_ones_and_suggests() -> None:
    registry = read_registry([point("warmth", "WARMTH")])
    with pytest.raises(
        ValueError, match=r"Unknown `stage: warmt`; known stages are .*kto, warmth; did you mean `warmth`\?"
    ):
        registry.find("warmt")


def test_one_name_from_two_packages_is_refused_naming_both() -> None:
    registry = read_registry([point("warmth", "WARMTH"), point("cold", "COLD"), point("warmth", "WARMTH")])
    with pytest.raises(ValueError, match="'warmth' is registered by two packages"):
        registry.find("warmth")
    assert registry.find("cold") is COLD


def test_a_failing_import_names_package_and_cause_and_spares_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    broken = EntryPoint("broken", "no_such_package_here:STAGE", GROUP)
    registry = read_registry([broken, point("cold", "COLD")])
    assert registry.find("cold") is COLD
    with pytest.raises(ValueError, match=r"'broken'.*no_such_package_here.*ModuleNotFoundError"):
        registry.find("broken")
    registry.report_problems()
    assert "no_such_package_here" in capsys.readouterr().err


def test_an_entry_point_must_hold_a_stage_of_its_own_name() -> None:
    registry = read_registry([point("warmth", "NOT_A_STAGE"), point("hot", "COLD")])
    assert "is not a llamafactory_embed.Stage" in registry.problems["warmth"]
    assert "named 'hot' but its stage 'cold'" in registry.problems["hot"]


@dataclass
class NoHelp:
    strength: float = 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "Big Stage"}, "use lower-case letters"),
        ({"name": "sft"}, "a stage of LLaMA-Factory itself"),
        ({"options": int}, "must be a dataclass"),
        ({"options": NoHelp}, "needs metadata"),
        ({"run": "no colon"}, "`run` of stage .* `package.module:function`"),
        ({"check": "no colon"}, "`check` of stage .* `package.module:function`"),
        ({"engine": "no colon"}, "`engine` of stage .* `package.module:Class`"),
    ],
)
def test_a_bad_record_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_stage(**changes)
