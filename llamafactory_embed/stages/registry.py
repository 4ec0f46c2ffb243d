"""The stages that the installed packages register, and what is wrong with those that cannot be used."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from ..hparams.suggestion import suggest
from .stage import HOST_STAGES, Stage


GROUP = "llamafactory.stages"


class Registry:
    """Stages by name. A stage that cannot be used never stops the others: it is remembered with a sentence that
    is shown when the host starts, and raised when a recipe asks for it."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.problems: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def add(self, stage: Stage, owner: str) -> None:
        """Register a stage of the package `owner`."""
        if stage.name in self._owners:
            self.reject(
                stage.name,
                f"Stage {stage.name!r} is registered by two packages, {self._owners[stage.name]} and {owner}: "
                "uninstall one of them.",
            )
        else:
            self.stages[stage.name] = stage
            self._owners[stage.name] = owner

    def reject(self, name: str, sentence: str) -> None:
        """Drop a stage and remember why."""
        self.stages.pop(name, None)
        self.problems[name] = sentence

    def owner(self, name: str) -> str:
        """The package that registered a stage."""
        return self._owners[name]

    def find(self, name: str) -> Stage | None:
        """The plugin stage of that name, None for a stage of the host; a ValueError for anything else."""
        if not isinstance(name, str):
            raise ValueError(f"`stage` must be a name, not {name!r}.")
        if name in self.stages:
            return self.stages[name]
        if name in HOST_STAGES:
            return None
        if name in self.problems:
            raise ValueError(self.problems[name])

        names = [*HOST_STAGES, *self.stages]
        raise ValueError(f"Unknown `stage: {name}`; known stages are {', '.join(names)}{suggest(name, names)}")

    def report_problems(self) -> None:
        """Say on stderr, once and from the first process only, what could not be loaded."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            for sentence in self.problems.values():
                print(f"llamafactory-embed: {sentence}", file=sys.stderr)


def read_registry(points: Iterable[EntryPoint]) -> Registry:
    """Load every entry point; a failure is recorded with its package and cause."""
    registry = Registry()
    for point in points:
        owner = point.dist.name if point.dist is not None else point.value
        try:
            stage = point.load()
            if not isinstance(stage, Stage):
                raise TypeError(f"{point.value} is not a llamafactory_embed.Stage")
            if stage.name != point.name:
                raise ValueError(f"the entry point is named {point.name!r} but its stage {stage.name!r}")
        except Exception as error:  # whatever another package's import raises must not take the other stages down
            registry.reject(
                point.name,
                f"Stage {point.name!r} of the package {owner} could not be loaded "
                f"({type(error).__name__}: {error}); the other stages are not affected.",
            )
        else:
            registry.add(stage, owner)

    return registry


@functools.cache
def load_registry() -> Registry:
    """The registry of this process, read once."""
    return read_registry(entry_points(group=GROUP))
