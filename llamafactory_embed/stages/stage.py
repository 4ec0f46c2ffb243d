"""What a training stage is to LLaMA-Factory: a small record that any package may register."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..hparams.relevance import condition_problems


# Stages of the host; a plugin may not take their names.
HOST_STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")

# The arguments every `run` function takes, in the host's order.
RUN_ARGUMENTS = ("model_args", "data_args", "training_args", "finetuning_args", "generating_args", "callbacks")


@dataclass(frozen=True)
class Stage:
    """One value of `stage:` in a recipe.

    Registered through an entry point of the group `llamafactory.stages`, whose name is the stage's name::

        [project.entry-points."llamafactory.stages"]
        contrastive = "llamafactory_embed.stages:CONTRASTIVE"
    """

    name: str
    """The value of `stage:`; lower-case letters, digits, `-` and `_`."""

    options: type
    """A dataclass of the options that only this stage reads. Every field has a default and a `help`; they join the
    host's parser, the help text and LLaMA Board, and reach `run` as `finetuning_args.stage_options`."""

    run: str
    """`package.module:function`, imported when the stage runs. It is called like the host's workflows, with
    (model_args, data_args, training_args, finetuning_args, generating_args, callbacks)."""

    label: str
    """How LLaMA Board lists the stage."""

    formats: tuple[str, ...] = ()
    """The values of `formatting` in `dataset_info.json` that the stage reads; empty means the host's."""

    check: str = ""
    """`package.module:function` that raises a ValueError for options that contradict each other or the host's. Before
    every run, and by `recipe check`, it is called with the first five arguments of `run`, when nothing is loaded."""

    engine: str = ""
    """`package.module:Class` of the host's `BaseEngine` that serves the stage's models in `llamafactory-cli chat`,
    `webchat` and `api`; empty: they do not chat."""

    tab: str = ""
    """`package.module:function` that builds a tab of LLaMA Board for the stage's models, called with a
    `llamafactory_embed.board.tabs.BoardPage`; stages that name the same function share the tab."""

    evaluation: str = ""
    """The same for a part of the Board's tab "Evaluate & Predict"."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", self.name):
            raise ValueError(
                f"A stage cannot be named {self.name!r}: use lower-case letters, digits, `-` and `_`, a letter first."
            )
        if self.name in HOST_STAGES:
            raise ValueError(f"A stage cannot be named {self.name!r}: that is a stage of LLaMA-Factory itself.")
        if not (isinstance(self.options, type) and dataclasses.is_dataclass(self.options)):
            raise ValueError(f"The options of stage {self.name!r} must be a dataclass, not {self.options!r}.")
        for field in dataclasses.fields(self.options):
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ValueError(f"Option `{field.name}` of stage {self.name!r} needs a default value.")
            if not field.metadata.get("help"):
                raise ValueError(f'Option `{field.name}` of stage {self.name!r} needs metadata={{"help": …}}.')
        problems = condition_problems(self.options)
        if problems:
            raise ValueError(f"Options of stage {self.name!r}: {' '.join(problems)}")
        if not re.fullmatch(r"[\w.]+:\w+", self.run):
            raise ValueError(f"`run` of stage {self.name!r} must read `package.module:function`, not {self.run!r}.")
        if self.check and not re.fullmatch(r"[\w.]+:\w+", self.check):
            raise ValueError(
                f"`check` of stage {self.name!r} must read `package.module:function`, not {self.check!r}."
            )
        if self.engine and not re.fullmatch(r"[\w.]+:\w+", self.engine):
            raise ValueError(f"`engine` of stage {self.name!r} must read `package.module:Class`, not {self.engine!r}.")
        for name, place in (("tab", self.tab), ("evaluation", self.evaluation)):
            if place and not re.fullmatch(r"[\w.]+:\w+", place):
                raise ValueError(
                    f"`{name}` of stage {self.name!r} must read `package.module:function`, not {place!r}."
                )

    def load_run(self) -> Callable[..., Any]:
        """Import the function that `run` names."""
        return _import_named(self.run)

    def load_engine(self) -> Callable[..., Any]:
        """Import the class that `engine` names."""
        return _import_named(self.engine)

    def load_tab(self) -> Callable[..., Any]:
        """Import the function that `tab` names."""
        return _import_named(self.tab)

    def load_evaluation(self) -> Callable[..., Any]:
        """Import the function that `evaluation` names."""
        return _import_named(self.evaluation)

    def check_arguments(self, *args: Any) -> None:
        """Refuse what `check` refuses. `args` are the first five arguments of `run`."""
        if self.check:
            _import_named(self.check)(*args)


def _import_named(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
