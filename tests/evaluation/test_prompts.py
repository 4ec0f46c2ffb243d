"""Which instruction a text gets, compared with mteb's own order of keys."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import mteb
import pytest
from mteb.models.abs_encoder import get_prompt_name
from mteb.types import PromptType

from llamafactory_embed.evaluation.prompts import (
    Instructions,
    check_prompt_keys,
    doubled_punctuation,
    find_untrained_prompts,
    resolve_prompts,
)
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


@pytest.mark.parametrize(
    ("template", "instruction", "doubled"),
    [
        ("{instruction}; {text}", "Find it.", ".;"),
        ("llm2vec_e5_data", "Find it:", ":;"),
        ("{instruction}; {text}", "Find it", ""),
        ("llm2vec", "Find it:", ""),
        ("e5", "Find it.", ""),
        ("{instruction}{text}", "Find it.", ""),
        ("{text}", "Find it.", ""),
        ("{instruction}; {text}", "", ""),
    ],
)
def test_punctuation_doubles_where_instruction_and_template_meet(
    template: str, instruction: str, doubled: str
) -> None:
    assert doubled_punctuation(template, instruction) == doubled


def warning(trained: dict[str, str], given: dict[str, str], template: str | None = None) -> str | None:
    config = make_config(instructions=trained, query_template="{instruction}; {text}")
    tasks: Any = [(Task("SciFact"), "query"), (Task("STS12", "STS"), None), (Task("NQ"), "query")]
    found = instructions(given=given, use_defaults=False)
    return find_untrained_prompts("me/mine", config, template or config.query_template, found, tasks)


def test_prompts_that_were_not_trained_are_one_sentence_with_both_texts() -> None:
    trained = {"claims": "Given a claim, find a document", "twins": "Find similar texts"}
    assert warning(trained, {"Retrieval": trained["claims"], "STS": trained["twins"]}) is None
    said = warning(trained, {"SciFact": trained["claims"], "NQ": "Given a claim, find documents.", "STS": "Twins"})
    assert said == (
        "me/mine reads the texts of NQ as 'Given a claim, find documents.; text', but was trained with "
        "'Given a claim, find a document; text' (2 tasks have prompts that are new to it); '.;' is where the "
        "instruction ends and the template goes on. `prompts` and `query_template` decide what it reads."
    )
    said = warning(trained, {"Retrieval": trained["claims"], "STS": trained["twins"]}, template="llm2vec")
    assert said is not None
    assert "as 'Given a claim, find a document text', but was trained with 'Given a claim, find a document; " in said


def test_a_model_that_was_trained_without_instruction_is_told_of_one() -> None:
    assert warning({"lines": ""}, {}) is None
    said = warning({"lines": ""}, {"STS": "Twins"})
    assert said is not None
    assert "reads the texts of STS12 as 'Twins; text', but was trained with 'text'." in said


def test_a_checkpoint_that_records_no_instruction_is_told_of_doubled_punctuation_only() -> None:
    assert warning({}, {"STS": "Twins"}) is None
    assert "'.;' is where" in (warning({}, {"STS": "Twins."}) or "")
