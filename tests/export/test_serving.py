"""Prompts, lengths and dimensions for sentence-transformers, and what it cannot express."""

from __future__ import annotations

from typing import Any

import pytest

from llamafactory_embed.export.serving import collect_prompts, needs_code, plan_serving
from tests.embedders import make_config


TASKS = {"quora": "Find duplicates", "msmarco": "Find passages"}


def test_every_task_has_its_prompt() -> None:
    prompts = collect_prompts(make_config(instructions=TASKS))
    assert prompts["quora"] == "Instruct: Find duplicates\nQuery: "
    assert prompts["msmarco"] == "Instruct: Find passages\nQuery: "
    assert prompts["query"] == prompts["document"] == ""


def test_the_prompt_of_queries_is_the_only_task_or_the_chosen_one() -> None:
    only = collect_prompts(make_config(instructions={"quora": "Find duplicates"}, query_template="llm2vec"))
    assert only["query"] == only["quora"] == "Find duplicates "
    chosen = collect_prompts(make_config(instructions=TASKS), "msmarco")
    assert chosen["query"] == chosen["msmarco"] != chosen["quora"]


def test_templates_without_an_instruction_are_prompts_of_all_texts() -> None:
    config = make_config(query_template="query: {text}", document_template="passage: {text}", instructions=TASKS)
    assert collect_prompts(config) == {
        "query": "query: ", "document": "passage: ", "quora": "query: ", "msmarco": "query: ",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        ({}, {"query_task": "msmarc"}, r"`--query-task msmarc`: .* on quora, msmarco; did you mean `msmarco`\?"),
        ({}, {"dimensions": 12}, r"`--dimensions 12` was not trained; this model has 8, 32\."),
        ({"query_template": "{text} =>"}, {}, r"`query_template: \{text\} =>` writes ' =>' after the text"),
        ({"document_template": "<{text}>"}, {}, r"`document_template: <\{text\}>` writes '>' after the text"),
        ({"pooling": "mask"}, {}, "sentence-transformers appends no mask tokens"),
        ({"instructions": {"document": "Find"}}, {}, "A task of this checkpoint is named 'document'"),
    ],
)
def test_what_sentence_transformers_cannot_express_gets_one_sentence(
    options: dict[str, Any], arguments: dict[str, Any], sentence: str
) -> None:
    config = make_config(**({"instructions": TASKS, "matryoshka_dims": [8]} | options))
    with pytest.raises(ValueError, match=sentence):
        plan_serving(config, 32, **arguments)


def test_lengths_and_dimensions() -> None:
    config = make_config(query_max_length=16, document_max_length=64, matryoshka_dims=[8, 32])
    serving = plan_serving(config, 32, dimensions=8)
    assert (serving.query_length, serving.document_length, serving.max_length) == (16, 64, 64)
    assert serving.dimensions == 8
    assert plan_serving(config, 32, dimensions=32).dimensions is None


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "eos", "bos", "latent", "multi_layer_latent"])
def test_code_is_shipped_where_stock_modules_pool_otherwise(pooling: str) -> None:
    has_weights = "latent" in pooling
    assert needs_code(make_config(pooling=pooling)) is has_weights
    averages = pooling in ("mean", "weighted_mean")
    assert needs_code(make_config(pooling=pooling, skip_instruction=True)) is (has_weights or averages)
