"""What each task is trained for: the recipe's options, with those that its data set or `objectives:` replace."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .contrastive import LOSSES, ContrastiveOptions
from .loss_terms import READ_BY
from .option import default_of, find_problem
from .suggestion import suggest


OPTION_OF: dict[str, str] = {
    "loss": "contrastive_loss",
    "temperature": "loss_temperature",
    **{
        name: name
        for name in (
            "num_negatives",
            "false_negative_margin",
            "both_directions",
            "same_side_negatives",
            "mask_own_negatives",
            "guide_margin",
            "hardness_strength",
            "hardness_of",
            "focal_gamma",
            "mixed_negatives",
            "candidate_tile",
            "scale_by_dim",
            "pair_margin",
            "kl_weight",
            "teacher_temperature",
            "vector_weight",
            "vector_distance",
            "spread_out_weight",
            "matryoshka_dims",
            "matryoshka_weights",
        )
    },
}
"""Key of an objective → the recipe's option that it replaces for one task."""

KEYS = (*OPTION_OF, "own_passages_only", "weight")


@dataclass(frozen=True)
class Objective:
    """What one task is trained for."""

    options: ContrastiveOptions
    weight: float = 1.0
    """Of the task's loss in every one of its steps; how often it has one is a matter of `dataset_weights`."""


def check_objective(settings: object, source: str) -> dict[str, Any]:
    """The settings of one task if each of them exists and may have its value; `source` names them in messages."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{source} must map settings to values, such as `loss: cosent`, not {settings!r}.")
    fields = {field.name: field for field in dataclasses.fields(ContrastiveOptions)}
    hints = typing.get_type_hints(ContrastiveOptions)
    for key, value in settings.items():
        if key not in KEYS:
            meant = next((short for short, name in OPTION_OF.items() if name == key), None)
            raise ValueError(
                f"{source}: `{key}` is not a setting of an objective"
                + (f"; did you mean `{meant}`?" if meant else suggest(key, KEYS))
            )
        problem: str | None = None
        if key in OPTION_OF:
            option = OPTION_OF[key]
            problem = find_problem(fields[option], hints[option], value)
            problem = problem and problem.replace(f"`{option}`", f"`{key}`", 1)
        elif key == "own_passages_only" and not isinstance(value, bool):
            problem = f"`own_passages_only` must be true or false, not {value!r}."
        elif key == "weight" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            problem = f"`weight` must be a number above 0, not {value!r}."
        if problem:
            raise ValueError(f"{source}: {problem}")
    return dict(settings)


def read_objectives(options: ContrastiveOptions) -> dict[str, dict[str, Any]]:
    """The recipe's `objectives`: task → settings."""
    if options.objectives is None:
        return {}
    if not isinstance(options.objectives, Mapping):
        raise ValueError(f"`objectives` must map tasks to their settings, not {options.objectives!r}.")
    found = {name: check_objective(each, f"`objectives`: {name}") for name, each in options.objectives.items()}
    for name, settings in found.items():
        make_objective(options, settings, f"`objectives`: {name}")
    return found


def make_objective(options: ContrastiveOptions, settings: Mapping[str, Any], source: str) -> Objective:
    """The recipe's options with a task's own in their place. What the recipe sets for another loss than the task's
    does not concern the task."""
    own = {OPTION_OF[key]: value for key, value in settings.items() if key in OPTION_OF}
    inherited = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values = {**inherited, **own, "objectives": None}
    defaults = {field.name: default_of(field) for field in dataclasses.fields(options)}
    for name in _without_effect(values):
        if name not in own:
            values[name] = defaults[name]
    try:
        replaced = ContrastiveOptions(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Objective(replaced, float(settings.get("weight", 1.0)))


def _without_effect(values: Mapping[str, Any]) -> list[str]:
    """Options that a task's loss would not read, or not with its number of negatives."""
    loss, negatives = values["contrastive_loss"], values["num_negatives"]
    names = [name for name, losses in READ_BY.items() if loss not in losses]
    if loss not in READ_BY["guide_model"]:
        names += ["guide_margin", "guide_margin_kind"]
    if loss == "vector_distillation":
        names += ["vector_weight", "matryoshka_dims", "matryoshka_weights"]
    if negatives < 2:
        names += ["mixed_negatives"]
    if negatives < 1:
        names += ["kl_weight"]
        if values["hardness_of"] == "hard_negatives":
            names += ["hardness_strength"]
    if values["matryoshka_dims"] is None or len(values["matryoshka_dims"]) != len(values["matryoshka_weights"] or []):
        names += ["matryoshka_weights"]
    return names


def objectives_of_tasks(
    options: ContrastiveOptions, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Objective]:
    """The objective of every task; those that cannot share a run are refused."""
    objectives = {name: make_objective(options, each, f"Task `{name}`") for name, each in settings.items()}
    if options.task_batching == "mixed":
        _refuse_in_mixed_batches(objectives)
    similarities = {name: compared_by(each.options) for name, each in objectives.items()}
    if len(set(similarities.values())) > 1:
        shown = ", ".join(f"`{name}` by {each}" for name, each in similarities.items())
        raise ValueError(
            f"An embedder has one similarity, and the losses of the tasks compare {shown}: choose losses and a "
            "`similarity` that agree."
        )
    return objectives


def _refuse_in_mixed_batches(objectives: Mapping[str, Objective]) -> None:
    first, *others = objectives
    for name in others:
        if objectives[name] != objectives[first]:
            raise ValueError(
                f"`task_batching: mixed` puts rows of all tasks into one batch, which has one objective, and those of "
                f"{first} and {name} differ: use `task_batching: homogeneous`."
            )


def compared_by(options: ContrastiveOptions) -> Literal["cosine", "dot"]:
    """How the loss compares texts, whatever `similarity` says where it can only compare in one way."""
    return LOSSES[options.contrastive_loss].similarity or options.similarity


def served_sizes(objectives: Sequence[Objective]) -> list[int] | None:
    """Sizes to which some objective lets embeddings be cut, largest first."""
    sizes = {size for each in objectives for size in each.options.matryoshka_dims or []}
    return sorted(sizes, reverse=True) or None
