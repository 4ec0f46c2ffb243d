"""Recipes of masked next-token prediction: each trains with a tiny model of its kind, and the pages name all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from llamafactory.train.tuner import run_exp

from llamafactory_embed.hparams.mntp import MntpOptions
from tests.docs.option_pages import declared_options, explained_options
from tests.e2e.token_runs import write_documents
from tests.examples.test_recipes import ARCHITECTURES, ENGINE_KEYS, RECIPES, ROOT, read
from tests.tiny_models import save_tiny_model


MNTP_RECIPES = [each for each in RECIPES if read(each).get("stage") == "mntp"]


@pytest.mark.parametrize("recipe", MNTP_RECIPES, ids=str)
def test_recipe_trains(recipe: Path, tmp_path: Path) -> None:
    """Two steps on the bundled prose; all else is the recipe's own."""
    options = {key: value for key, value in read(recipe).items() if key not in ENGINE_KEYS}
    name = options["model_name_or_path"].lower()
    architecture = next(tiny for known, tiny in ARCHITECTURES.items() if known in name)
    options |= {
        "model_name_or_path": str(save_tiny_model(tmp_path / "model", architecture)),
        "dataset_dir": str(write_documents(tmp_path / "data")),
        "dataset": "prose",
        "eval_dataset": "heldout",
        "output_dir": str(tmp_path / "out"),
        "cutoff_len": 64,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_steps": 2,
        "eval_steps": 2,
        "report_to": "none",
        "use_cpu": True,
    }
    run_exp(options)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text("utf-8"))
    (loss,) = [entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry]
    assert 0 < loss < math.inf
    assert state["global_step"] == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("recipe", MNTP_RECIPES, ids=str)
def test_recipe_is_listed(recipe: Path) -> None:
    assert f"(../examples/{recipe})" in (ROOT / "docs" / "recipes.md").read_text("utf-8")


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("mntp.md") == declared_options(MntpOptions)
