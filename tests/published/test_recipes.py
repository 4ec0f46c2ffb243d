"""Our recipes have the effective values of the originals' files, or the table says where and why not."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.published.expected import TRANSLATORS
from tests.published.page import PAGE, page
from tests.published.table import OTHERS, ROWS, Row


ROOT = Path(__file__).parents[2]
FACTS = {path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "facts").glob("*.json")}
# What a machine without GPUs refuses while parsing; compared as the recipe gives it.
ENGINE_OPTIONS = ("bf16", "deepspeed", "flash_attn")


def settings_of(row: Row) -> Mapping[str, Any]:
    family, _, path = row.original.partition("/")
    return FACTS[family][path]


def recipe_of(row: Row) -> dict[str, Any]:
    """The recipe's options with those of the command line over them, as the host merges the two."""
    base = OmegaConf.load(ROOT / row.recipe)
    return OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_cli(shlex.split(row.overrides))))


def effective_values(options: dict[str, Any]) -> dict[str, Any]:
    """Every option of the host and of ours after parsing, by name."""
    import llamafactory.hparams.parser as host_parser
    from transformers import HfArgumentParser

    given = {name: value for name, value in options.items() if name not in ENGINE_OPTIONS}
    parser = HfArgumentParser(host_parser._TRAIN_ARGS)
    parsed = parser.parse_dict(given | {"report_to": "none", "use_cpu": True}, allow_extra_keys=False)
    values = {name: value for arguments in parsed for name, value in vars(arguments).items()}
    values |= {name: options.get(name) for name in ENGINE_OPTIONS}
    if values["stage"] in ("contrastive", "tdro"):
        for name in ("query_max_length", "document_max_length"):
            values[name] = values[name] or values["cutoff_len"]
    return values


def comparable(value: Any) -> Any:
    """Enumerations by their value, paths without a last slash, lists as lists."""
    value = getattr(value, "value", value)
    if isinstance(value, str):
        return value.rstrip("/")
    return [comparable(each) for each in value] if isinstance(value, (list, tuple)) else value


def printed_commands(recipe: str) -> set[str]:
    """The command lines of a recipe's header, without the program and the file."""
    header = (ROOT / recipe).read_text("utf-8").split("\n###")[0]
    lines = re.sub(r"\\\n#\s*", "", header).splitlines()
    pattern = rf"(?:FORCE_TORCHRUN=1 )?llamafactory-cli train {re.escape(recipe)}(.*)"
    return {" ".join(match.group(1).split()) for line in lines if (match := re.fullmatch(pattern, line.strip("# ")))}


def differences(row: Row) -> dict[str, tuple[Any, Any]]:
    """What the original has and what ours has, where they differ."""
    expected = TRANSLATORS[row.kind](settings_of(row))
    ours = effective_values(recipe_of(row))
    return {
        name: (value, ours.get(name))
        for name, value in expected.items()
        if comparable(ours.get(name)) != comparable(value)
        and not (isinstance(value, float) and ours.get(name) == pytest.approx(value))
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.original}-{Path(row.recipe).stem}")
def test_a_recipe_has_the_effective_values_of_the_original(row: Row) -> None:
    found = differences(row)
    unexplained = {name: pair for name, pair in found.items() if name not in row.departures}
    assert not unexplained, "what the original has, and ours"
    assert not set(row.departures) - set(found), "these are no departures any more"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.original}-{Path(row.recipe).stem}")
def test_the_command_line_is_printed_in_the_recipe(row: Row) -> None:
    assert row.overrides in printed_commands(row.recipe)


def test_no_original_file_is_without_a_row() -> None:
    files = {f"{family}/{path}" for family, entries in FACTS.items() if family != "instructions" for path in entries}
    trained = {row.original for row in ROWS}
    others = {row.original for row in OTHERS}
    assert not trained & others
    assert trained | others == files


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `make docs`"
