"""Recipes converted from the originals' files have the effect of the originals: the expected values are those with
which our published examples are compared (`tests/published`)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_embed.cli import main
from llamafactory_embed.recipe.check import check_recipe
from llamafactory_embed.recipe.conversions import TOOLS
from llamafactory_embed.recipe.conversions.markdown import render_tool, render_trainer
from llamafactory_embed.recipe.conversions.training_arguments import TRAINING_ARGUMENTS
from llamafactory_embed.recipe.convert import convert_settings, find_tool
from llamafactory_embed.recipe.effective import effective_values
from llamafactory_embed.recipe.old_files import read_shell
from tests.published.expected import LOCAL_FOLDERS, TRANSLATORS
from tests.published.table import ROWS, Row
from tests.published.test_recipes import ENGINE_OPTIONS, FACTS, comparable, settings_of


TOOL_OF = {"llm2vec": "llm2vec", "diffusion_embedder": "llm2vec", "llm2vec_word_fork": "llm2vec", "tdro": "tdro",
           "diffullama": "diffullama"}  # fmt: skip
FAMILIES = sorted(TOOL_OF)
CONVERTED = [row for row in ROWS if row.original.partition("/")[0] in TOOL_OF]
# What a recipe needs and these files do not hold: an adapter that was merged before.
MERGED = ("model_name_or_path", "adapter_name_or_path")


def family_of(row: Row) -> str:
    return row.original.partition("/")[0]


def script(facts: Mapping[str, Mapping[str, str]]) -> str:
    """A shell script with the facts' variables and flags; what stands there behind a flag without a value are comments
    of the script, and what they say not to use was a comment itself."""
    lines = [f"{name}={value}" for name, value in facts["variables"].items() if re.fullmatch(r"[\w./${}()\-:\"]+", value)]
    lines.append("accelerate launch \\")
    for name, value in facts["flags"].items():
        if "Do NOT" in value or name in ("grad_cache", "no_sync_except_last"):
            lines_of_flag = []
        elif re.match(r"\s*[#\n]", value) or value.startswith("  "):
            lines_of_flag = [f"  --{name} \\"]
        else:
            lines_of_flag = [f"  --{name} {value} \\"]
        lines += lines_of_flag
    return "\n".join(lines) + "\n  |& tee log\n"


def original_settings(row: Row) -> Mapping[str, Any]:
    """What the file says, with the names of what lay in folders of the authors' machines."""
    settings = settings_of(row)
    if family_of(row) == "tdro":
        return read_shell(script(settings))
    named = {name: LOCAL_FOLDERS.get(value, value) if isinstance(value, str) else value for name, value in settings.items()}
    return named


def converted_values(row: Row) -> dict[str, Any]:
    options = convert_settings(original_settings(row), TOOLS[TOOL_OF[family_of(row)]]).options
    values = effective_values({name: each for name, each in options.items() if name not in ENGINE_OPTIONS} | {"report_to": "none", "use_cpu": True})
    values |= {name: options.get(name) for name in ENGINE_OPTIONS}
    for name in ("query_max_length", "document_max_length"):
        values[name] = values.get(name) or values["cutoff_len"]
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_file_has_the_effect_of_the_original(family: str) -> None:
    wrong = {}
    for row in CONVERTED:
        if family_of(row) != family:
            continue
        ours = converted_values(row)
        for name, value in TRANSLATORS[row.kind](settings_of(row)).items():
            left, right = comparable(ours.get(name)), comparable(value)
            is_near = isinstance(value, float) and isinstance(left, (int, float)) and left == pytest.approx(value)
            if left != right and not is_near and name not in row.departures:
                wrong[f"{row.original}: {name}"] = (left, right)
    assert wrong == {}, "converted, and the original"
