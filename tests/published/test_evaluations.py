"""The recipes of examples/eval have the originals' tasks, instructions, templates and lengths."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

from llamafactory_embed.data.prompts import parse_template
from tests.published.test_recipes import FACTS, ROOT


if importlib.util.find_spec("mteb") is None:
    pytest.skip("needs the extra `eval`", allow_module_level=True)

from llamafactory_embed.evaluation.prompts import Instructions, check_prompt_keys
from llamafactory_embed.evaluation.tasks import ChosenTask, choose_tasks


PUBLISHED: Mapping[str, Any] = FACTS["instructions"]
LOCAL = "mkqa"  # a folder that the user makes


def recipe(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "examples" / "eval" / f"{name}.yaml"))


def tasks_of(options: Mapping[str, Any]) -> list[ChosenTask]:
    names = [options["tasks"]] if isinstance(options["tasks"], str) else options["tasks"]
    return choose_tasks([name for name in names if not name.endswith(LOCAL)], None)


def instructions_of(options: Mapping[str, Any], tasks: Iterable[ChosenTask]) -> dict[str, str]:
    """What every task's queries (or texts of one kind) read, by the task's name."""
    found = Instructions(options["prompts"], {}, use_defaults=False, local_tasks=frozenset())
    parts = [(part, "query" if task.is_retrieval else None) for task in tasks for part in task.parts]
    return {part.metadata.name: found.find(part.metadata, role) for part, role in parts}


@pytest.mark.parametrize("name", ["diffusion_embedder", "llm2vec", "pooling_and_attention", "tdro"])
def test_every_key_is_one_of_the_tasks(name: str) -> None:
    options = recipe(name)
    parts = [part.metadata.name for task in tasks_of(options) for part in task.parts]
    check_prompt_keys(options["prompts"], [*parts, LOCAL])


def test_llm2vec() -> None:
    options = recipe("llm2vec")
    assert options["tasks"] == "mteb-eng"
    assert instructions_of(options, tasks_of(options)) == PUBLISHED["llm2vec_mteb"]
    assert options["prompts"] == PUBLISHED["llm2vec_mteb"]
    assert options["text_max_length"] == 400
    prompt = parse_template(options["query_template"]).render("some text", "Retrieve semantically similar text:")
    assert prompt.string == "Retrieve semantically similar text: some text"


def test_diffusion_embedder() -> None:
    options = recipe("diffusion_embedder")
    assert options["tasks"] == ["followir", "longembed", "bright"]
    assert options["top_k"] == 200
    read = instructions_of(options, tasks_of(options))
    published = {text for name, text in PUBLISHED["diffusion_embedder_mteb"].items() if name.startswith("Bright")}
    bright = {name: text for name, text in read.items() if name.startswith("Bright")}
    assert len(bright) == 12
    assert set(bright.values()) == published
    # The table has no line for the others: mteb's general instruction, in the form of the table.
    (general,) = {task.task.abstask_prompt for task in tasks_of(options)}
    assert {text for name, text in read.items() if name not in bright} == {general.rstrip(".") + ":"}
    prompt = parse_template(options["query_template"]).render("a query", "Do this:")
    assert prompt.string == "<|im_start|>user\nDo this: a query<|im_end|>"


def test_bright_leaves_the_excluded_documents_out() -> None:
    """mteb's superseded task does not."""
    for task in choose_tasks(["bright", "bright-long"], None):
        assert task.task.superseded_by is None
        assert task.task.load_data.__globals__["load_bright_data"].__module__.endswith("bright_v1_1_retrieval")
    assert choose_tasks(["BrightRetrieval"], None)[0].task.superseded_by is not None


def test_pooling_and_attention() -> None:
    options = recipe("pooling_and_attention")
    lists = PUBLISHED["pooling_and_attention_mteb"]
    tasks = tasks_of(options)
    assert instructions_of(options, tasks) == {**lists["run_mteb.py"], **lists["run_mteb_retrieval.py"]}
    assert [task.name for task in tasks] == [*lists["run_mteb.py"], *lists["run_mteb_retrieval.py"]]
    assert (options["query_max_length"], options["document_max_length"]) == (512, 512)
    prompt = parse_template(options["query_template"]).render("text", "Find it.")
    assert prompt.string == "Find it.text"
    # `run_mteb.py` has one function for all texts, so that candidates to be reranked have the instruction, too.
    found = Instructions(options["prompts"], {}, use_defaults=False, local_tasks=frozenset())
    for task in tasks:
        if task.is_retrieval:
            expected = "" if task.name in lists["run_mteb_retrieval.py"] else lists["run_mteb.py"][task.name]
            assert found.find(task.task.metadata, "document") == expected


def test_tdro() -> None:
    options = recipe("tdro")
    assert options["tasks"] == ["beir", "miracl", f"cache/{LOCAL}"]
    read = instructions_of(options, tasks_of(options)) | {"MKQA": options["prompts"][LOCAL]}
    published = dict(PUBLISHED["tdro_mteb"])
    duplicates = published.pop("CQADupstackRetrieval")
    assert {text for name, text in read.items() if name.startswith("CQADupstack")} == {duplicates}
    assert {name: text for name, text in read.items() if not name.startswith("CQADupstack")} == published
    assert [published["MKQA"]] == PUBLISHED["tdro"]["e5"]["MKQA"]
    assert "query_template" not in options  # as in training
