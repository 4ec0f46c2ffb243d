"""`eval RECIPE.yaml`: an evaluation recipe, or a training recipe that names its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .options import EvaluationOptions, make_evaluation_options


def read_recipe(path: Path) -> dict[str, Any]:
    """Options of an evaluation. A training recipe, known by its `stage`, is evaluated on its `eval_tasks`: the
    checkpoint is its `output_dir`."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if not path.is_file():
        raise ValueError(f"There is no recipe {path}.")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map options to values.")
    if "stage" not in values:
        return {str(name): value for name, value in values.items()}
    options: dict[str, Any] = {}
    if "output_dir" in values:
        options["checkpoints"] = [values["output_dir"]]
        options["output"] = str(Path(values["output_dir"], TRAINING_RESULTS))
    if "eval_tasks" in values:
        options["tasks"] = values["eval_tasks"]
    if "dataset_dir" in values:
        options["dataset_dir"] = values["dataset_dir"]
    return options


TRAINING_RESULTS = "mteb"  # the folder of results in a training recipe's `output_dir`


def options_of(values: dict[str, Any], recipe: Path | None) -> EvaluationOptions:
    """Those of a recipe under those of the command line."""
    from_recipe = {} if recipe is None else read_recipe(recipe)
    where = "eval" if recipe is None else str(recipe)
    return make_evaluation_options(from_recipe | values, where)
