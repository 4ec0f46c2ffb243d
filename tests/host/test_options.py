"""The options of plugin stages in the host's real parser."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from llamafactory.hparams import parser
from llamafactory.hparams.finetuning_args import FinetuningArguments
from llamafactory.train import tuner
from transformers import HfArgumentParser

from llamafactory_embed.host.options import ARGUMENT_LISTS, apply, extend_finetuning_arguments, reject_conflicts
from llamafactory_embed.hparams import option
from llamafactory_embed.hparams.serving import ServingOptions
from llamafactory_embed.stages.registry import Registry
from llamafactory_embed.stages.stage import Stage


@dataclass
class WarmthOptions:
    warmth: float = option(0.5, "Between 0 % and 100 %.", minimum=0.0, maximum=1.0)
    color: Literal["red", "orange"] = option("red", "Which colour.")
    layers: int | None = option(None, "How many.", minimum=1)
    names: list[str] = option([], "Which ones.")

    def __post_init__(self) -> None:
        if self.warmth + len(self.names) > 3:
            raise ValueError("`warmth` is too high for so many `names`.")


@dataclass
class ColdOptions:
    color: Literal["red", "orange"] = option("red", "Which colour.")
    frozen: bool = option(False, "Whether it froze.")


def make_registry(*pairs: tuple[str, type]) -> Registry:
    registry = Registry()
    for name, options in pairs:
        registry.add(Stage(name=name, options=options, run="somewhere:run", label=name), owner=f"package-{name}")
    return registry


@pytest.fixture(scope="module")
def extended() -> type:
    registry = make_registry(("warmth", WarmthOptions), ("cold", ColdOptions))
    return extend_finetuning_arguments(FinetuningArguments, registry)


def parse(extended: type, **recipe: Any) -> Any:
    (arguments,) = HfArgumentParser(extended).parse_dict(recipe)
    return arguments


def test_the_stage_gets_its_own_options(extended: type) -> None:
    arguments = parse(extended, stage="warmth", warmth=1, names=["a"], lora_rank=4)
    assert arguments.stage_options == WarmthOptions(warmth=1, names=["a"])
    assert arguments.lora_rank == 4
    assert isinstance(arguments, FinetuningArguments)
    assert arguments.to_dict()["warmth"] == 1


def test_host_stages_have_no_stage_options(extended: type) -> None:
    assert parse(extended, stage="dpo").stage_options is None
    assert parse(extended, stage="dpo").use_ref_model is True


def test_command_line_and_recipe_agree(extended: type) -> None:
    (arguments,) = HfArgumentParser(extended).parse_args_into_dataclasses(
        ["--stage", "warmth", "--warmth", "0.25", "--color", "orange", "--layers", "3", "--names", "a", "b"]
    )
    assert (
        arguments.stage_options
        == parse(extended, stage="warmth", warmth=0.25, color="orange", layers=3, names=["a", "b"]).stage_options
    )


def test_help_shows_stages_and_options(extended: type) -> None:
    text = HfArgumentParser(extended).format_help()
    assert "{pt,sft,rm,ppo,dpo,kto,warmth,cold}" in text
    assert "[warmth] Between 0 % and 100 %." in " ".join(text.split())


def test_every_list_of_argument_classes_gets_the_options() -> None:
    """Also one that this version of the host does not have, as that for Megatron Bridge in a newer one."""
    module = ModuleType("llamafactory.hparams.parser")
    module.FinetuningArguments = FinetuningArguments
    module.get_train_args = lambda args=None: ()
    module.get_last_checkpoint = lambda folder: None
    for name in (*ARGUMENT_LISTS, "_TRAIN_MBRIDGE_ARGS"):
        setattr(module, name, [FinetuningArguments])
    module._TRAIN_MCA_ARGS = []  # its package is not installed
    apply(module)
    assert module.FinetuningArguments is not FinetuningArguments
    for name in ("_TRAIN_ARGS", "_EVAL_ARGS", "_TRAIN_MBRIDGE_ARGS"):
        assert getattr(module, name) == [module.FinetuningArguments]
    (serving,) = module._INFER_ARGS
    assert issubclass(serving, module.FinetuningArguments)
    added = {field.name for field in dataclasses.fields(serving)}
    added -= {field.name for field in dataclasses.fields(module.FinetuningArguments)}
    assert added == {field.name for field in dataclasses.fields(ServingOptions)}


def test_an_engine_chosen_by_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With USE_MCA=1 the host sets `use_mca` after the options were checked; it would then run `stage: sft` there."""
    monkeypatch.setenv("USE_MCA", "1")
    monkeypatch.setattr(parser, "_TRAIN_MCA_ARGS", parser._TRAIN_ARGS)  # as if mcore-adapter were installed
    recipe = {"stage": "contrastive", "model_name_or_path": str(tmp_path), "output_dir": str(tmp_path)}
    recipe |= {"dataset": "pairs", "do_train": True, "use_cpu": True}
    with pytest.raises(ValueError, match="`stage: contrastive` does not run under `use_mca`"):
        tuner.get_train_args(recipe)


def test_an_unknown_key_is_refused(extended: type) -> None:
    with pytest.raises(ValueError, match="warmht"):
        parse(extended, stage="warmth", warmht=1.0)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"stage": "warmht"}, "; did you mean `warmth`"),
        ({"stage": "warmth", "warmth": 1.5}, "`warmth` must be between 0.0 and 1.0, not 1.5"),
        ({"stage": "warmth", "warmth": "hot"}, "`warmth` must be a number, not 'hot'"),
        ({"stage": "warmth", "color": "orang"}, "one of red, orange, not 'orang'; did you mean `orange`"),
        ({"stage": "warmth", "layers": 0}, "`layers` must be at least 1"),
        ({"stage": "warmth", "names": ["a", "b", "c"]}, "too high for so many"),
        ({"stage": "cold", "frozen": 1}, "`frozen` must be true or false"),
        ({"stage": "cold", "warmth": 0.1}, "`warmth` is an option of `stage: warmth`, not of `stage: cold`"),
        ({"stage": "sft", "color": "orange"}, "`stage: warmth` and `stage: cold`, not of `stage: sft`"),
        ({"stage": "cold", "use_mca": True}, "does not run under `use_mca`"),
        ({"stage": "cold", "use_hyper_parallel": True}, "does not run under `use_hyper_parallel`"),
    ],
)
def test_bad_values_get_one_sentence(extended: type, recipe: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(extended, **recipe)


def test_all_bad_values_are_named_at_once(extended: type) -> None:
    with pytest.raises(ValueError, match=r"`warmth` must be .* `color` must be"):
        parse(extended, stage="warmth", warmth=7, color="blue")


@dataclass
class OtherColor:
    color: Literal["red", "orange"] = option("orange", "Which colour.")


@dataclass
class HostName:
    lora_rank: int = option(8, "Taken by the host.")


def test_conflicting_options_reject_the_later_stage_only() -> None:
    registry = make_registry(("warmth", WarmthOptions), ("other", OtherColor), ("host-name", HostName))
    taken = {field.name: "FinetuningArguments" for field in dataclasses.fields(FinetuningArguments)}
    reject_conflicts(registry, taken)
    assert list(registry.stages) == ["warmth"]
    assert "package-warmth declares its option `color` differently" in registry.problems["other"]
    assert "`lora_rank` is already an option of LLaMA-Factory (FinetuningArguments)" in registry.problems["host-name"]
