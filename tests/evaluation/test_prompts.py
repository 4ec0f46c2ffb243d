"""Which instruction a text gets, compared with mteb's own order of keys."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import mteb
import pytest
from mteb.models.abs_encoder import get_prompt_name
from mteb.types import PromptType

from llamafactory_embed.evaluation.prompts import Instructions, check_prompt_keys, resolve_prompts
from tests.embedders import make_config


@dataclass
class Task:
    """What is asked of a task's metadata."""

    name: str = "SciFact"
    type: str = "Retrieval"
    prompt: Any = None


KEYS = ["SciFact-query", "SciFact", "Retrieval-query", "Retrieval", "query", "document", "SciFact-document"]


def instructions(**changes: Any) -> Instructions:
    return Instructions(**({"given": {}, "trained": {}, "use_defaults": True, "local_tasks": frozenset()} | changes))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_queries_find_the_key_that_mteb_finds(count: int) -> None:
    for keys in itertools.combinations(KEYS, count):
        own = {key: f"text of {key}" for key in keys}
        name = get_prompt_name(own, Task(), PromptType.query)
        found = instructions(given=own, use_defaults=False).find(Task(), "query")
        assert found == ("" if name is None else own[name])


def test_a_key_without_a_role_is_not_for_documents() -> None:
    own = {"SciFact": "a", "Retrieval": "b", "query": "c"}
    assert instructions(given=own).find(Task(), "document") == ""
    assert instructions(given=own | {"Retrieval-document": "d", "document": "e"}).find(Task(), "document") == "d"


def test_texts_of_one_kind_have_the_key_of_their_task() -> None:
    task = Task("STS12", "STS")
    assert instructions(given={"STS": "a", "query": "b"}).find(task, None) == "a"
    assert instructions(given={"STS": "a", "STS12": "b"}).find(task, None) == "b"


def test_without_a_key_what_was_trained_comes_first_then_what_mteb_says() -> None:
    task = Task(prompt={"query": "given a claim"})
    trained = {"SciFact": "as trained"}
    assert instructions(trained=trained).find(task, "query") == "as trained"
    assert instructions(trained=trained).find(task, "document") == ""
    assert instructions().find(task, "query") == "given a claim"
    assert instructions().find(task, "document") == ""
    assert instructions().find(Task(prompt="for all"), "document") == ""
    assert instructions(use_defaults=False).find(task, "query") == ""
    default = mteb.get_task("SciFact").abstask_prompt
    assert instructions().find(Task(), "query") == default != ""


def test_local_data_have_their_own_instruction_or_none() -> None:
    local = frozenset(["mine"])
    task = Task("mine", prompt={"query": "a", "document": "b"})
    assert instructions(local_tasks=local, use_defaults=False).find(task, "query") == "a"
    assert instructions(local_tasks=local).find(task, "document") == "b"
    assert instructions(local_tasks=local).find(Task("mine"), "query") == ""


def test_an_instruction_that_was_trained_is_named_with_an_at_sign() -> None:
    config = make_config(instructions={"nouns": "Find the noun"})
    assert resolve_prompts({"query": "@nouns", "STS": "x"}, config, "c") == {"query": "Find the noun", "STS": "x"}
    with pytest.raises(ValueError, match=r"names `noun`, but c was trained .*nouns; did you mean `nouns`\?"):
        resolve_prompts({"query": "@noun"}, config, "c")


def test_a_key_that_nothing_has_is_refused() -> None:
    check_prompt_keys(["query", "SciFact-document", "STS", "Retrieval-query"], ["SciFact"])
    with pytest.raises(ValueError, match=r"key `SciFatc`.*did you mean `SciFact`\?"):
        check_prompt_keys(["SciFatc"], ["SciFact"])
