"""The instructions of our data sets are those with which the published models were trained."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.published.test_recipes import FACTS, ROOT


ENTRIES: dict[str, dict[str, Any]] = json.loads((ROOT / "data" / "dataset_info.json").read_text("utf-8"))
TDRO = [name for name in ENTRIES if name.startswith("tdro_")]
E5 = [name for name in ENTRIES if name.startswith("e5_")]


def as_list(instruction: str | list[str]) -> list[str]:
    return [instruction] if isinstance(instruction, str) else instruction


@pytest.mark.parametrize("name", TDRO)
def test_tdro_reads_its_own_instructions(name: str) -> None:
    published = {task.lower(): instructions for task, instructions in FACTS["instructions"]["tdro"]["e5"].items()}
    assert as_list(ENTRIES[name]["instruction"]) == published[name.removeprefix("tdro_").lower()]


def test_all_tasks_of_tdro_are_there() -> None:
    tasks = FACTS["tdro"]["config/uniform_sampling_s0.json"]["domain_ids"]
    assert {name.removeprefix("tdro_") for name in TDRO} == set(tasks)


@pytest.mark.parametrize("family", ["llm2vec_e5", "diffusion_embedder_e5"])
def test_the_public_e5_data_have_the_authors_instructions(family: str) -> None:
    published = FACTS["instructions"][family]["E5_EMBEDDING_PROMPTS"]
    ours = {name.removeprefix("e5_"): as_list(ENTRIES[name]["instruction"]) for name in E5}
    assert {name: ours[name] for name in published} == {name: as_list(each) for name, each in published.items()}
