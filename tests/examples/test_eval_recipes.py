"""The recipes of examples/eval, and the page on evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llamafactory_embed.evaluation.groups import GROUPS
from llamafactory_embed.evaluation.models import LEXICAL, MINILM
from llamafactory_embed.evaluation.options import EvaluationOptions, options_of
from llamafactory_embed.evaluation.tasks import choose_tasks
from llamafactory_embed.hparams.source import SourceOptions
from tests.docs.option_pages import declared_options, explained_options


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "eval").glob("*.yaml"))
PAGE = ROOT / "docs" / "evaluate.md"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_accepted_and_its_tasks_are_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = options_of({}, path)
    tasks = [task for task in options.tasks if not task.startswith("cache/")]  # what a user has to make first
    assert len(choose_tasks(tasks, options.dataset_dir)) >= len(tasks)
    assert set(options.baseline or ()) <= {*LEXICAL, MINILM}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_judges_what_a_recipe_of_ours_trains(path: Path) -> None:
    trained = {
        OmegaConf.load(recipe).get("output_dir")
        for recipe in (ROOT / "examples").rglob("*.yaml")
        if recipe.parent.name not in ("accelerate", "chain", "eval")
    }
    assert set(options_of({}, path).checkpoints) <= trained


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_how_to_run_it_and_is_listed(path: Path) -> None:
    header = path.read_text("utf-8").split("\n###")[0]
    assert f"llamafactory-embed eval examples/eval/{path.name}" in header
    assert f"(../examples/eval/{path.name})" in (ROOT / "docs" / "recipes.md").read_text("utf-8")


def test_page_explains_every_option_once_with_its_default() -> None:
    assert explained_options("evaluate.md") == declared_options(EvaluationOptions, explained_elsewhere=SourceOptions)


def test_page_names_every_group() -> None:
    assert re.findall(r"^\| `([\w-]+)` \| .*\| \d+ \|$", PAGE.read_text("utf-8"), flags=re.M) == list(GROUPS)


@pytest.mark.parametrize("name", GROUPS)
def test_page_counts_the_tasks_of_a_group(name: str) -> None:
    (count,) = re.findall(rf"^\| `{name}` \| .*\| (\d+) \|$", PAGE.read_text("utf-8"), flags=re.M)
    assert len(choose_tasks([name], None)) == int(count)
